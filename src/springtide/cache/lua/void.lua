-- Invalidate fields of one slot for one committed transaction, or for one call where there is no database.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 the transaction's xid; "x" and a random number where there is no database (then no tombstone is needed)
--       2 milliseconds that an old value is kept aside ("0": not)   3 milliseconds that a tag's version is kept
--       4 entries that the bus keeps   then the fields: "k:<name>", "t:<tag>" or "*", the whole slot
-- Answers the sequence up to which a process has to have heard the bus. A transaction that had voided all of
-- this before changes nothing: its tombstones are there, so whatever was kept since has seen it.
local call = redis.call
local p = string.sub(KEYS[1], 1, -2)
local T = p .. 'T'
local xid, aside = ARGV[1], ARGV[2]
local fenced = string.byte(xid) ~= 120  -- "x"

local function merged(old, round)  -- the tombstone with this xid; nil when it says it already
  local X = tonumber(xid)
  local most, came = string.match(old, '^<(%d+)@(%d+)$')
  if not most then
    local listed, count = ',' .. old .. ',', 1
    if string.find(listed, ',' .. xid .. ',', 1, true) then return nil end
    for one in string.gmatch(old, '%d+') do
      count = count + 1
      if tonumber(one) > X then X = tonumber(one) end
    end
    if count <= 8 then return old .. ',' .. xid end
  elseif X <= tonumber(most) then
    -- It may have been open in a mark that is newer than the tombstone; none is before the second next round.
    if tonumber(round or 0) <= came + 1 then return nil end
    X = tonumber(most)
  end
  -- Of more than eight only the greatest is kept, with the round in which the last one came.
  return string.format('<%.0f@%s', X, round or '0')
end

local changed, tags, gone = {}, {}, {}
for at = 5, #ARGV do
  local field = ARGV[at]
  local kind, new = string.byte(field), true
  if kind == 42 then  -- "*"; without tombstones there is no horizon, and the next one is above all of this
    if fenced then call('UNLINK', T, p .. 'O') end
  elseif fenced and call('HSETNX', T, field, xid) == 0 then
    new = merged(unpack(call('HMGET', T, field, '#round')))
    if new then call('HSET', T, field, new) end
  end
  if new then
    changed[#changed + 1] = field
    if kind == 107 then  -- "k"
      local name = string.sub(field, 3)
      gone[#gone + 1] = p .. 'l:' .. name
      if aside == '0' then
        gone[#gone + 1] = p .. 'v:' .. name
      elseif call('EXISTS', p .. 'v:' .. name) == 1 then
        call('RENAME', p .. 'v:' .. name, p .. 'o:' .. name)
        call('PEXPIRE', p .. 'o:' .. name, aside, 'LT')
      end
    elseif kind == 116 then  -- "t"
      tags[#tags + 1] = p .. 'g:' .. string.sub(field, 3)
    end
  end
end
if not changed[1] then
  local sequence = call('GET', KEYS[1])
  if sequence then return sequence end
end
local sequence = call('INCR', KEYS[1])
if sequence == 1 then  -- it was not there: it goes on above where it can have been
  local time = call('TIME')
  sequence = time[1] * 1000000 + time[2]
  call('SET', KEYS[1], string.format('%.0f', sequence))
end
local text = string.format('%.0f', sequence)
if not changed[1] then return text end
if gone[1] then call('DEL', unpack(gone)) end
for _, key in ipairs(tags) do call('SET', key, text .. '.' .. xid, 'PX', ARGV[3]) end  -- never comes twice
call('XADD', p .. 'B', 'MAXLEN', '~', ARGV[4], '*', 's', text, 'f', changed[2] and table.concat(changed, '\n') or changed[1])
-- Tombstones go when the relay beats. Where none does, losing them all is the bound: no horizon, no fills.
if fenced and sequence % 1000 == 0 and call('HLEN', T) > 200000 then call('UNLINK', T, p .. 'O') end
return text
