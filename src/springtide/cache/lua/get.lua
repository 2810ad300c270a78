-- Read values of one slot that are good only while the versions of their tags stand, or whose age matters; and
-- take the leases of those that are not there.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 what to do, of the letters "t": values name tags, "a": tell remaining lives, "l": take leases where nothing
--       is, "r": take leases whatever is there, "f": tell what the fence knows of those whose leases are ours
--       2 the lease   3 its milliseconds   then the names
-- Answers the sequence ("" when it is not there and no lease was asked for), then for each name the value, 1 (the lease
-- is ours), 0 (another's) or false; with "a" each is followed by its remaining milliseconds. With "f" the last is
-- false, when there is no horizon or no lease is ours, or a list: the horizon's xmax, what was open then, the newest
-- mark, and for each name its younger and its older tombstone.
-- The sequence is not newer than the values: what is voided later carries a greater one.
local call = redis.call
local p = string.sub(KEYS[1], 1, -2)
local tagged = string.find(ARGV[1], 't', 1, true)
local aged = string.find(ARGV[1], 'a', 1, true)
local again = string.find(ARGV[1], 'r', 1, true)
local leased = again or string.find(ARGV[1], 'l', 1, true)

local asked = {KEYS[1]}
for at = 4, #ARGV do asked[#asked + 1] = p .. 'v:' .. ARGV[at] end
local there = call('MGET', unpack(asked))
if leased and not there[1] then
  local time = call('TIME')
  there[1] = string.format('%.0f', time[1] * 1000000 + time[2])
  call('SET', KEYS[1], there[1])
end

local answer, ours = {there[1] or ''}, false
for at = 2, #there do
  local found = there[at]
  if found and tagged then
    local ends = string.find(found, '\n', 1, true)
    local names, versions = {}, {}
    for tag, version in string.gmatch(string.sub(found, 1, ends), '([^\31]+)\31([^\31\n]+)') do
      names[#names + 1] = p .. 'g:' .. tag
      versions[#versions + 1] = version
    end
    if #names > 0 then
      local now = call('MGET', unpack(names))
      for place, version in ipairs(versions) do
        if now[place] ~= version then ends = nil end
      end
    end
    found = ends and string.sub(found, ends + 1)
  end
  if leased and (again or not found) then
    found = call('SET', p .. 'l:' .. ARGV[at + 2], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 0
    ours = ours or found == 1
  end
  answer[#answer + 1] = found or false
  if aged then
    answer[#answer + 1] = type(found) == 'string' and call('PTTL', asked[at]) or 0
  end
end
if not string.find(ARGV[1], 'f', 1, true) then return answer end

local known = false
if ours then
  local fields = {'#horizon', '#open', '#now', '#older'}
  for at = 4, #ARGV do fields[#fields + 1] = 'k:' .. ARGV[at] end
  local young, old = call('HMGET', p .. 'T', unpack(fields)), {}
  local whole = young[1]
  if whole and young[4] ~= '0' then
    fields[4] = '#id'
    old = call('HMGET', p .. 'O', unpack(fields))
    whole = old[4] == young[4]
  end
  if whole then
    known = {young[1], young[2], young[3]}
    for at = 5, #fields do
      known[#known + 1] = young[at]
      known[#known + 1] = old[at] or false
    end
  end
end
answer[#answer + 1] = known
return answer
