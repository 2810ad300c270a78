-- Add each of ARGV to the stream KEYS[1]; how many.
for _, body in ipairs(ARGV) do
    redis.call('XADD', KEYS[1], '*', 'b', body)
end
return #ARGV
