-- A round of the relay: say that it was there, and drop tombstones that no admitted snapshot can miss.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 a life for the tombstones, should theirs have ended   2 the life that the snapshots below are for ("")
--       3 the newest snapshot of the primary, "round;xmax;running": taken after that round was answered ("")
--       4 such a one that every standby has caught up with: the horizon ("")   5 what the heartbeat says
--       6 entries that the bus keeps   7 milliseconds that all of this stays where nobody beats any more
-- Answers {life, round, 1 where there is a horizon}. Another life than the last: the tombstones were lost, and
-- snapshots taken before do not count; the relay asks the primary again and comes back with the new life.
-- Two generations: O has what was voided before round #born, T what was voided since. A horizon of round
-- #born or later was taken after all of O had committed, so it stands in for O. No clock decides here.
-- T says which O belongs to it (#older, as #id there; "0": there is none, because it would be empty).
local call = redis.call
local p = string.sub(KEYS[1], 1, -2)
local T, O, B = p .. 'T', p .. 'O', p .. 'B'
local life, horizon, born, older = unpack(call('HMGET', T, '#life', '#horizon', '#born', '#older'))
local round
if not life or older ~= '0' and call('HGET', O, '#id') ~= older then
  call('UNLINK', T, O)
  life, horizon, round = ARGV[1], false, 1
  call('HSET', T, '#life', life, '#round', 1, '#born', 1, '#older', '0', '#now', '')
else
  round = call('HINCRBY', T, '#round', 1)
  if life == ARGV[2] then
    if ARGV[3] ~= '' then call('HSET', T, '#now', ARGV[3]) end
    local of, high, open = string.match(ARGV[4], '^(%d+);(%d+);(.*)$')
    if of and not horizon then
      horizon = high
      call('HSET', T, '#horizon', high, '#open', open)
    elseif of and tonumber(of) >= tonumber(born) then
      local now = call('HGET', T, '#now')
      older = call('HLEN', T) > 7 and life .. ':' .. round or '0'  -- all beside the seven that begin with "#"
      call('UNLINK', O)
      if older ~= '0' then
        call('HSET', T, '#id', older)
        call('RENAME', T, O)
      else
        call('UNLINK', T)
      end
      call('HSET', T, '#life', life, '#round', round, '#born', round, '#older', older, '#now', now)
      call('HSET', T, '#horizon', high, '#open', open)
    end
  end
end
local sequence = call('GET', KEYS[1])
if not sequence then
  local time = call('TIME')
  sequence = string.format('%.0f', time[1] * 1000000 + time[2])
  call('SET', KEYS[1], sequence)
end
call('XADD', B, 'MAXLEN', '~', ARGV[6], '*', 's', sequence, 'b', ARGV[5])
for _, key in ipairs({KEYS[1], T, O, B}) do call('PEXPIRE', key, ARGV[7]) end
return {life, round, horizon and 1 or 0}
