-- Add to what all processes were asked for lately, one class.
-- KEYS  1 the counts, a sorted set   2 when they were aged last, in milliseconds of this server's clock
-- ARGV  1 milliseconds after which a count is worth half   2 how many members to keep   3 milliseconds to keep them
--       then member, count ...
-- A clock that is set back ages nothing until it has caught up; nothing but an order depends on it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local half = tonumber(ARGV[1])
local passed = now - tonumber(redis.call('GET', KEYS[2]) or now)
if passed >= half / 100 then
  redis.call('ZUNIONSTORE', KEYS[1], 1, KEYS[1], 'WEIGHTS', string.format('%.17g', 0.5 ^ (passed / half)))
end
if passed < 0 or passed >= half / 100 or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SET', KEYS[2], string.format('%.0f', now))
end
for at = 4, #ARGV, 2 do redis.call('ZINCRBY', KEYS[1], ARGV[at + 1], ARGV[at]) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('ZCARD', KEYS[1])
