-- Give back a lease whose load failed, so that the next who asks need not wait for its end.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 the lease   then the names
-- Answers how many of them were still held by it.
local p = string.sub(KEYS[1], 1, -2)
local given = 0
for at = 2, #ARGV do
  local key = p .. 'l:' .. ARGV[at]
  if redis.call('GET', key) == ARGV[1] then given = given + redis.call('DEL', key) end
end
return given
