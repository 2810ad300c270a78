-- Keep loaded values, each only if nothing that invalidated it is missing from what was read.
-- KEYS  1 the slot's sequence; every other key of the slot is named from it and lies on the same node
-- ARGV  1 "p": read on a primary, "s": on a standby, "-": there is no database
--       2 xmin; without a database the sequence that the lease came with   3 xmax
--       4 transactions in progress, comma-separated   5 own xid of a writer that puts what it wrote ("")
--       6 milliseconds that a tag's version is kept
--       then for each value: name, lease ("": none is needed), its milliseconds, what to keep,
--       how many tags ("": its class has none), tags
-- Answers the sequence, then for each value "ok" or the rule that refused it: "lease", "horizon" (there is none),
-- "early" (the snapshot is older than the horizon) or "unseen" (an invalidation is not in what was read).
-- The rules are those of _fence.py, which says why they hold.
local call = redis.call
local p = string.sub(KEYS[1], 1, -2)
local T = p .. 'T'
local fenced, standby = ARGV[1] ~= '-', ARGV[1] == 's'
local xmin, xmax, own = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]

local function among(list, xid) return string.find(',' .. list .. ',', ',' .. xid .. ',', 1, true) end

local function covers(high, open)  -- has all that had ended in that snapshot ended in ours?
  if xmin >= high then return true end
  if standby or xmax < high then return false end
  for xid in string.gmatch(ARGV[4], '%d+') do
    if tonumber(xid) < high and not among(open, xid) then return false end
  end
  return true
end

local function seen(text)  -- are all xids of a tombstone in our snapshot?
  local most, round = string.match(text, '^<(%d+)@(%d+)$')
  if most then
    if tonumber(most) < xmin then return true end
    -- The newest snapshot that the relay told has everything that was voided in an earlier round.
    local now, high, open = string.match(call('HGET', T, '#now') or '', '^(%d+);(%d+);(.*)$')
    return not standby and now and tonumber(round) < tonumber(now) and covers(tonumber(high), open)
  end
  for one in string.gmatch(text, '%d+') do
    local xid = tonumber(one)
    if one ~= own and xid >= xmin and (standby or xid >= xmax or among(ARGV[4], one)) then return false end
  end
  return true
end

local answer, made = {''}, {}
local rule = nil
local at = 7
while ARGV[at] do
  local name, lease, tagged = ARGV[at], ARGV[at + 1], ARGV[at + 4] ~= ''
  local count = tagged and tonumber(ARGV[at + 4]) or 0
  local there, young
  if count == 0 then
    there = call('MGET', KEYS[1], p .. 'l:' .. name)
    young = fenced and call('HMGET', T, '#horizon', '#older', 'k:' .. name)
  else
    local versions, fields = {KEYS[1], p .. 'l:' .. name}, {'#horizon', '#older', 'k:' .. name}
    for place = at + 5, at + 4 + count do
      versions[#versions + 1] = p .. 'g:' .. ARGV[place]
      fields[#fields + 1] = 't:' .. ARGV[place]
    end
    there = call('MGET', unpack(versions))
    young = fenced and call('HMGET', T, unpack(fields))
  end
  local sequence = there[1]
  if not sequence then
    local time = call('TIME')
    sequence = string.format('%.0f', time[1] * 1000000 + time[2])
    call('SET', KEYS[1], sequence)
  end
  answer[1] = sequence

  local why = rule
  if young and at == 7 then  -- what holds for all of them
    if not young[1] then
      rule = 'horizon'
    elseif xmin < tonumber(young[1]) and not covers(tonumber(young[1]), call('HGET', T, '#open')) then
      rule = 'early'
    end
    why = rule
  elseif not fenced and tonumber(sequence) < xmin then
    why = 'lease'
  end
  if not why and there[2] ~= lease and (lease ~= '' or not fenced) then why = 'lease' end
  if not why and young then
    for place = 3, 3 + count do
      if young[place] and not seen(young[place]) then why = 'unseen' end
    end
    if not why and young[2] ~= '0' then  -- there is an older generation
      local fields = {'#id', '', 'k:' .. name}
      for place = 1, count do fields[#fields + 1] = 't:' .. ARGV[at + 4 + place] end
      local old = call('HMGET', p .. 'O', unpack(fields))
      if old[1] ~= young[2] then why = 'horizon' end
      for place = 3, 3 + count do
        if old[place] and not seen(old[place]) then why = 'unseen' end
      end
    end
  end

  local kept = ARGV[at + 3]
  if tagged then
    local head = {}
    for place = 1, count do
      local tag = ARGV[at + 4 + place]
      local version = made[tag] or there[place + 2]
      if not version then  -- it was lost, or never was; this one has never been before
        version = sequence .. '.' .. (lease ~= '' and lease or own)
        made[tag] = version
        call('SET', p .. 'g:' .. tag, version, 'PX', ARGV[6])
      elseif not why then
        call('PEXPIRE', p .. 'g:' .. tag, ARGV[6])
      end
      if not fenced and tonumber(string.match(version, '^%d+')) > xmin then why = why or 'unseen' end
      head[#head + 1] = tag
      head[#head + 1] = version
    end
    kept = table.concat(head, '\31') .. '\n' .. kept
  end
  if not why then
    call('SET', p .. 'v:' .. name, kept, 'PX', ARGV[at + 2])
    if lease ~= '' then call('DEL', p .. 'l:' .. name) end
  end
  answer[#answer + 1] = why or 'ok'
  at = at + 5 + count
end
return answer
