-- Up to ARGV[3] messages of KEYS that somebody received ARGV[4] milliseconds ago and never settled, for
-- consumer ARGV[2] of group ARGV[1]; in the form of receive.lua. Consumers that have nothing and asked for
-- nothing during ARGV[5] milliseconds are forgotten.
local left, found = tonumber(ARGV[3]), {}
for number, key in ipairs(KEYS) do
    if left <= 0 then
        break
    end
    local got = redis.pcall('XAUTOCLAIM', key, ARGV[1], ARGV[2], ARGV[4], '0-0', 'COUNT', left)
    if not got.err then
        local entries = {}
        for _, entry in ipairs(got[2]) do
            if entry and entry[2] then  -- before 7.0 one that was deleted is nothing
                entries[#entries + 1] = entry
            end
        end
        if #entries > 0 then
            found[#found + 1] = {number, entries}
            left = left - #entries
        end
        for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, ARGV[1])) do
            if consumer[4] == 0 and consumer[6] > tonumber(ARGV[5]) then
                redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], consumer[2])
            end
        end
    end
end
return found
