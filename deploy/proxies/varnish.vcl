# Varnish before two Jobcasts, under the path /live/.
#   varnishd -F -f "$PWD/varnish.vcl" -a 127.0.0.1:8000 -p pipe_timeout=90
# Put a terminator with HTTP/2 before it for browsers. Tried by tests/blackbox/proxies with Varnish 7.1.
vcl 4.1;

import std;

backend first {
    .host = "127.0.0.1";
    .port = "8080";
    .connect_timeout = 2s;
    # A long poll may wait for 60s.
    .first_byte_timeout = 90s;
    .between_bytes_timeout = 90s;
}

backend second {
    .host = "127.0.0.1";
    .port = "8081";
    .connect_timeout = 2s;
    .first_byte_timeout = 90s;
    .between_bytes_timeout = 90s;
}

# The admin listeners, which say whether to send traffic. Requests never go to them.
probe ready {
    .url = "/readyz";
    .interval = 500ms;
    .timeout = 2s;
    .window = 3;
    .threshold = 2;
    .initial = 2;
}

backend first_admin {
    .host = "127.0.0.1";
    .port = "9464";
    .probe = ready;
}

backend second_admin {
    .host = "127.0.0.1";
    .port = "9465";
    .probe = ready;
}

sub vcl_recv {
    if (req.url !~ "^/live/") {
        return (synth(404));
    }
    # Takes the prefix off.
    set req.url = regsub(req.url, "^/live", "");
    if (std.healthy(first_admin) && (!std.healthy(second_admin) || std.random(0, 1) < 0.5)) {
        set req.backend_hint = first;
    } else {
        set req.backend_hint = second;
    }
    # A pipe passes bytes on as they come: no object, no storage, no time-out of fetching. pipe_timeout counts the time
    # without a byte: it must be above stream.heartbeat (15s).
    if (req.url ~ "/events/stream([?]|$)") {
        return (pipe);
    }
    # Nothing else of it may be cached either: answers depend on the moment and on the caller.
    return (pass);
}

sub vcl_pipe {
    # One request to a connection: the next on it would bypass these rules.
    set bereq.http.Connection = "close";
}
