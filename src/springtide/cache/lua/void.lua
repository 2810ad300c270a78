-- Invalidate fields of one slot for one committed transaction, or for one call where there is no database.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 the transaction's xid; "x" and a random number where there is no database (then no tombstone is needed)
--       2 milliseconds that an old value is kept aside ("0": not)   3 milliseconds that a tag's version is kept
--       4 entries that the bus keeps   then the fields: "k:<name>", "t:<tag>" or "*", the whole slot
-- Answers the sequence up to which a process has to have heard the bus. A transaction that had voided all of
-- this before changes nothing: its tombstones are there, so whatever was kept since has seen it.
local p = string.sub(KEYS[1], 1, -2)
local T = p .. 'T'
local xid, aside = ARGV[1], ARGV[2]
local fenced = string.sub(xid, 1, 1) ~= 'x'
local changed, marks = {}, {}

if fenced then
  local X = tonumber(xid)
  local were = redis.call('HMGET', T, '#round', unpack(ARGV, 5))
  local round = were[1] or '0'
  for at = 5, #ARGV do
    local old, now = were[at - 3], xid
    if old then
      -- Up to eight xids are listed. Of more the greatest and its round are kept: "<" .. xid .. "@" .. round.
      local most = string.match(old, '^<(%d+)')
      if most then
        if X <= tonumber(most) then now = nil else now = '<' .. xid .. '@' .. round end
      else
        local count, greatest = 1, X
        for one in string.gmatch(old, '%d+') do
          local other = tonumber(one)
          if other == X then now = nil end
          if other > greatest then greatest = other end
          count = count + 1
        end
        if now and count > 8 then
          now = string.format('<%.0f@%s', greatest, round)
        elseif now then
          now = old .. ',' .. xid
        end
      end
    end
    if now then
      changed[#changed + 1] = ARGV[at]
      marks[#marks + 1] = ARGV[at]
      marks[#marks + 1] = now
    end
  end
  if #changed > 0 then redis.call('HSET', T, unpack(marks)) end
else
  changed = {unpack(ARGV, 5)}
end

local sequence
if #changed == 0 then
  sequence = redis.call('GET', KEYS[1])
  if sequence then return sequence end
end
sequence = redis.call('INCR', KEYS[1])
if sequence == 1 then  -- it was not there: it goes on above where it can have been
  local time = redis.call('TIME')
  sequence = time[1] * 1000000 + time[2]
  redis.call('SET', KEYS[1], string.format('%.0f', sequence))
end
local text = string.format('%.0f', sequence)
if #changed == 0 then return text end

local gone = {}
for _, field in ipairs(changed) do
  local name = string.sub(field, 3)
  if string.byte(field) == 107 then  -- "k"
    gone[#gone + 1] = p .. 'l:' .. name
    if aside == '0' then
      gone[#gone + 1] = p .. 'v:' .. name
    elseif redis.call('EXISTS', p .. 'v:' .. name) == 1 then
      redis.call('RENAME', p .. 'v:' .. name, p .. 'o:' .. name)
      redis.call('PEXPIRE', p .. 'o:' .. name, aside, 'LT')
    end
  elseif string.byte(field) == 116 then  -- "t"; the xid makes a version that never comes twice
    redis.call('SET', p .. 'g:' .. name, text .. '.' .. xid, 'PX', ARGV[3])
  end
end
if #gone > 0 then redis.call('DEL', unpack(gone)) end
redis.call('XADD', p .. 'B', 'MAXLEN', '~', ARGV[4], '*', 's', text, 'f', table.concat(changed, '\n'))
-- Tombstones go when the relay beats. Where none does, losing them all is the bound: no horizon, no fills.
if fenced and sequence % 1000 == 0 and redis.call('HLEN', T) > 200000 then
  redis.call('UNLINK', T, p .. 'O')
end
return text
