-- Where a slot's bus stands: what a process that begins to listen has to know, read at one moment.
-- KEYS  1 the slot's sequence; the bus is named from it and lies on the same node
-- Answers the sequence and the id of the last entry. A sequence that is not there goes on above where it can have
-- been, so that its loss shows to all who had listened before.
local sequence = redis.call('GET', KEYS[1])
if not sequence then
  local time = redis.call('TIME')
  sequence = string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('SET', KEYS[1], sequence)
end
local last = redis.call('XREVRANGE', string.sub(KEYS[1], 1, -2) .. 'B', '+', '-', 'COUNT', 1)
return {sequence, last[1] and last[1][1] or '0-0'}
