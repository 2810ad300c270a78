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
local p = string.sub(KEYS[1], 1, -2)
local T, O, B = p .. 'T', p .. 'O', p .. 'B'
local meta = redis.call('HMGET', T, '#life', '#horizon', '#born')
local life, horizon, born = meta[1], meta[2], meta[3]
local round
if not life or redis.call('HGET', O, '#life') ~= life then
  redis.call('UNLINK', T, O)
  life, horizon, round = ARGV[1], false, 1
  redis.call('HSET', T, '#life', life, '#round', 1, '#born', 1)
  redis.call('HSET', O, '#life', life)
else
  round = redis.call('HINCRBY', T, '#round', 1)
  if life == ARGV[2] then
    if ARGV[3] ~= '' then redis.call('HSET', T, '#now', ARGV[3]) end
    if ARGV[4] ~= '' and not horizon then
      horizon = ARGV[4]
      redis.call('HSET', T, '#horizon', horizon)
    elseif ARGV[3] ~= '' and ARGV[4] ~= '' and tonumber(string.match(ARGV[4], '^%d+')) >= tonumber(born) then
      redis.call('UNLINK', O)
      redis.call('RENAME', T, O)
      redis.call('HSET', T, '#life', life, '#round', round, '#born', round, '#horizon', ARGV[4], '#now', ARGV[3])
    end
  end
end
local sequence = redis.call('GET', KEYS[1])
if not sequence then
  local time = redis.call('TIME')
  sequence = string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('SET', KEYS[1], sequence)
end
redis.call('XADD', B, 'MAXLEN', '~', ARGV[6], '*', 's', sequence, 'b', ARGV[5])
for _, key in ipairs({KEYS[1], T, O, B}) do redis.call('PEXPIRE', key, ARGV[7]) end
return {life, round, horizon and 1 or 0}
