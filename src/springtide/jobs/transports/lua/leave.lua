-- Consumer ARGV[2] of group ARGV[1] leaves KEYS: what it has received and not settled is added anew, for others.
for _, key in ipairs(KEYS) do
    local pending = redis.pcall('XPENDING', key, ARGV[1], '-', '+', 1000, ARGV[2])
    if not pending.err then
        for _, one in ipairs(pending) do
            local entry = redis.call('XRANGE', key, one[1], one[1])[1]
            if entry then
                redis.call('XADD', key, '*', unpack(entry[2]))
            end
            redis.call('XACK', key, ARGV[1], one[1])
            redis.call('XDEL', key, one[1])
        end
        redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], ARGV[2])
    end
end
return #KEYS
