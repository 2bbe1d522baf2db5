-- Sends the bodies of a file, one a line, each thread from another place in it; prints counts for the program.
local requests, next_one, threads = {}, 0, 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(args)
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
   for body in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format(nil, nil, nil, body)
   end
   next_one = number * 7919 % #requests
end

function request()
   next_one = next_one % #requests + 1
   return requests[next_one]
end

function done(summary, latency)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format("BENCH %d %d %d\n", summary.requests, failed, summary.duration))
end
