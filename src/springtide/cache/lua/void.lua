-- Invalidate fields of one slot for one committed transaction, or for one call where there is no database.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 the transaction's xid; "x" and a random number where there is no database (then no tombstone is needed)
--       then the fields: "k:<name>", "t:<tag>" or "*", the whole slot; where values are kept aside or one of them is a
--       tag, before them "=a t": milliseconds that an old value is kept aside (0: not), and that a tag's version is
-- Answers the sequence up to which a process has to have heard the bus. A transaction that had voided all of
-- this before changes nothing: its tombstones are there, so whatever was kept since has seen it.
-- Most calls are for one field that nobody has voided lately: they make four calls (a tombstone, the sequence, the
-- value and its lease, the bus), build no list and format no number; Redis writes one as it is.
local call = redis.call
local S, xid = KEYS[1], ARGV[1]
local p = string.sub(S, 1, -2)
local T = p .. 'T'
local fenced = string.byte(xid) ~= 120  -- "x"
local first, aside, life = 2, '0', nil
if string.byte(ARGV[2]) == 61 then  -- "="
  first = 3
  aside, life = string.match(ARGV[2], '^=(%d+) (%d+)$')
end

local function merged(old, round)  -- the tombstone with this xid; nil when it says it already
  local X = tonumber(xid)
  if string.byte(old) ~= 60 then  -- "<"
    local listed, count = ',' .. old .. ',', 1
    if string.find(listed, ',' .. xid .. ',', 1, true) then return nil end
    for one in string.gmatch(old, '%d+') do
      count = count + 1
      if tonumber(one) > X then X = tonumber(one) end
    end
    if count <= 8 then return old .. ',' .. xid end
  else
    local most, came = string.match(old, '(%d+)@(%d+)')
    if X > tonumber(most) then return '<' .. xid .. '@' .. (round or 0) end
    -- It may have been open in a mark that is newer than the tombstone; none is before the second next round.
    if tonumber(round or 0) <= came + 1 then return nil end
    X = tonumber(most)
  end
  -- Of more than eight only the greatest is kept, with the round in which the last one came.
  return string.format('<%.0f@%s', X, round or 0)
end

local function void()
  local changed, more, tags  -- the first field, and the list of all where there are several
  for at = first, #ARGV do
    local field = ARGV[at]
    local kind, new = string.byte(field), true
    if kind == 42 then  -- "*"; without tombstones there is no horizon, and the next one is above all of this
      if fenced then call('UNLINK', T, p .. 'O') end
    elseif fenced and call('HSETNX', T, field, xid) == 0 then
      new = merged(unpack(call('HMGET', T, field, '#round')))
      if new then call('HSET', T, field, new) end
    end
    if new then
      if changed then
        more = more or {changed}
        more[#more + 1] = field
      else
        changed = field
      end
      if kind == 107 then  -- "k"
        local name = string.sub(field, 3)
        local value = p .. 'v:' .. name
        if aside == '0' then
          call('DEL', p .. 'l:' .. name, value)
        else
          call('DEL', p .. 'l:' .. name)
          if call('EXISTS', value) == 1 then
            call('RENAME', value, p .. 'o:' .. name)
            call('PEXPIRE', p .. 'o:' .. name, aside, 'LT')
          end
        end
      elseif kind == 116 then  -- "t"
        tags = tags or {}
        tags[#tags + 1] = p .. 'g:' .. string.sub(field, 3)
      end
    end
  end
  if not changed then
    local sequence = call('GET', S)
    if sequence then return sequence end
  end
  local sequence = call('INCR', S)
  if sequence == 1 then  -- it was not there: it goes on above where it can have been
    local time = call('TIME')
    sequence = time[1] * 1000000 + time[2]
    call('SET', S, string.format('%.0f', sequence))
  end
  if not changed then return sequence end
  if tags then
    local version = string.format('%.0f.%s', sequence, xid)  -- never comes twice
    for _, key in ipairs(tags) do call('SET', key, version, 'PX', life) end
  end
  call('XADD', p .. 'B', '*', 's', sequence, 'f', more and table.concat(more, '\n') or changed)
  if sequence % 1000 == 0 then
    call('XTRIM', p .. 'B', 'MAXLEN', '~', 10000)
    -- Tombstones go when the relay beats. Where none does, losing them all is the bound: no horizon, no fills.
    if fenced and call('HLEN', T) > 200000 then call('UNLINK', T, p .. 'O') end
  end
  return sequence
end

-- In a cluster a call fails when its key has left the node already, whatever was done before it. Then the
-- tombstones go, and with them the horizon: who tries again must not find this transaction's, as if all were done.
local done, answer = pcall(void)
if done then return answer end
if fenced then redis.pcall('UNLINK', T) end
return type(answer) == 'table' and answer or {err = tostring(answer)}
