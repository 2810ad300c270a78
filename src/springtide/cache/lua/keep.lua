-- Keep loaded values under leases that nothing was voided since; what was voided before has been judged already.
-- KEYS  for each value: its lease's key, its own
-- ARGV  for each value: the lease, its milliseconds, what to keep
-- Answers for each "1", kept, or "0": the lease is gone, so it has been invalidated, has ended or was lost.
-- _fence.py says why that is enough.
local call, at, answer = redis.call, 1, ''
for key = 1, #KEYS, 2 do
  if call('GET', KEYS[key]) == ARGV[at] then
    call('SET', KEYS[key + 1], ARGV[at + 2], 'PX', ARGV[at + 1])
    call('DEL', KEYS[key])
    answer = answer .. '1'
  else
    answer = answer .. '0'
  end
  at = at + 3
end
return answer
