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
local p = string.sub(KEYS[1], 1, -2)
local T, O = p .. 'T', p .. 'O'
local mode = ARGV[1]
local standby = mode == 's'
local xmin, xmax, own = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])

local asked, fields = {KEYS[1]}, {'#life', '#horizon', '#now', '*'}
local at = 7
while at <= #ARGV do
  local name, count = ARGV[at], tonumber(ARGV[at + 4]) or 0
  asked[#asked + 1] = p .. 'l:' .. name
  fields[#fields + 1] = 'k:' .. name
  for place = at + 5, at + 4 + count do
    asked[#asked + 1] = p .. 'g:' .. ARGV[place]
    fields[#fields + 1] = 't:' .. ARGV[place]
  end
  at = at + 5 + count
end
local there = redis.call('MGET', unpack(asked))
local sequence = there[1]
if not sequence then
  local time = redis.call('TIME')
  sequence = string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('SET', KEYS[1], sequence)
end

local running
local function finished(xid)  -- in the snapshot, for a primary
  if xid < xmin then return true end
  if xid >= xmax then return false end
  if not running then
    running = {}
    for one in string.gmatch(ARGV[4], '%d+') do running[tonumber(one)] = true end
  end
  return not running[xid]
end

local function covers(mark)  -- is all that had finished in that snapshot ("round;xmax;running") finished in ours?
  local high, open = string.match(mark, '^%d+;(%d+);(.*)$')
  high = tonumber(high)
  if xmin >= high then return true end
  if standby or xmax < high then return false end
  local known = {}
  for one in string.gmatch(open, '%d+') do known[tonumber(one)] = true end
  for one in string.gmatch(ARGV[4], '%d+') do
    local xid = tonumber(one)
    if xid < high and not known[xid] then return false end
  end
  return true
end

local young, old, rule
if mode ~= '-' then
  young = redis.call('HMGET', T, unpack(fields))
  fields[2], fields[3] = '#life', '#life'
  old = redis.call('HMGET', O, unpack(fields))
  if not young[1] or young[1] ~= old[1] or not young[2] then
    rule = 'horizon'
  elseif not covers(young[2]) then
    rule = 'early'
  end
elseif tonumber(sequence) < xmin then
  rule = 'lease'
end

local function seen(text)
  if not text then return true end
  local most, round = string.match(text, '^<(%d+)@(%d+)$')
  if most then
    if tonumber(most) < xmin then return true end
    local now = young[3]  -- the newest snapshot that the relay told; all of an earlier round is in it
    return not standby and now and tonumber(round) < tonumber(string.match(now, '^%d+')) and covers(now)
  end
  for one in string.gmatch(text, '%d+') do
    local xid = tonumber(one)
    if xid ~= own and xid >= xmin and (standby or not finished(xid)) then return false end
  end
  return true
end

if not rule and young and not (seen(young[4]) and seen(old[4])) then rule = 'unseen' end

local answer, done, made = {sequence}, {}, {}
local key, field = 2, 5
at = 7
while at <= #ARGV do
  local name, lease, tagged = ARGV[at], ARGV[at + 1], ARGV[at + 4] ~= ''
  local count = tonumber(ARGV[at + 4]) or 0
  local why = rule
  if not why and (lease ~= '' or not young) and there[key] ~= lease then why = 'lease' end
  if not why and young then
    for place = field, field + count do
      if not (seen(young[place]) and seen(old[place])) then why = 'unseen' end
    end
  end
  local head = {}
  for place = 1, count do
    local tag = ARGV[at + 4 + place]
    local version = made[tag] or there[key + place]
    if not version then  -- it was lost, or never was; this one has never been before
      version = sequence .. '.' .. (lease ~= '' and lease or ARGV[5])
      made[tag] = version
      redis.call('SET', p .. 'g:' .. tag, version, 'PX', ARGV[6])
    elseif not why then
      redis.call('PEXPIRE', p .. 'g:' .. tag, ARGV[6])
    end
    if not young and tonumber(string.match(version, '^%d+')) > xmin then why = why or 'unseen' end
    head[#head + 1] = tag
    head[#head + 1] = version
  end
  if not why then
    local kept = ARGV[at + 3]
    if tagged then kept = table.concat(head, '\31') .. '\n' .. kept end
    redis.call('SET', p .. 'v:' .. name, kept, 'PX', ARGV[at + 2])
    if lease ~= '' then done[#done + 1] = p .. 'l:' .. name end
  end
  answer[#answer + 1] = why or 'ok'
  key, field, at = key + 1 + count, field + 1 + count, at + 5 + count
end
if #done > 0 then redis.call('DEL', unpack(done)) end
return answer
