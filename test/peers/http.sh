# HTTP of a kernel of 14 MB and an initial RAM disk of 24 MB, beside nginx.

bench_http() {
  local dir=$work/http p i c part a b out rounds
  mkdir -p "$dir/www/initrd"
  head -c 14000000 /dev/urandom >"$dir/www/kernel"
  head -c 24000000 /dev/urandom >"$dir/www/initrd/0"
  chmod -R a+rX "$work"
  # The faster of its ways: tcp_nopush makes it wait 30 ms before the end of each small range.
  cat >"$dir/nginx.conf" <<CONF
worker_processes auto;
daemon off;
pid $dir/nginx.pid;
error_log $dir/nginx.err;
user root;
events { worker_connections 1024; }
http {
  access_log off;
  sendfile on;
  keepalive_requests 1000000;
  open_file_cache max=100;
  server { listen 127.0.0.1:8080; root $dir/www; }
}
CONF
  echo "http://127.0.0.1:8080/" >"$dir/urls-nginx"
  declare -A server
  for p in ours nginx; do space "http-$p"; done
  start http-ours http-ours "$ours" http -root "$dir/www" -store "$dir/store" -list "$dir/urls-ours"
  server[ours]=$pid
  start http-nginx http-nginx nginx -c "$dir/nginx.conf" -e "$dir/nginx.err"
  server[nginx]=$pid
  until_ok test -s "$dir/urls-ours"
  for p in ours nginx; do until_ok inside http-$p "$ours" get -list "$dir/urls-$p" -root "$dir/www"; done
  sleep 2.5 # a file that was imported within two seconds is read again for each request, on purpose

  for i in $(seq "$ROUNDS"); do
    for c in 1:20:0 40:3:0 1:2:65024 40:1:65024; do
      IFS=: read -r c rounds part <<<"$c"
      for p in ours nginx; do
        a=$(spent_all "${server[$p]}")
        out=$(inside http-$p "$ours" get -list "$dir/urls-$p" -root "$dir/www" -clients "$c" -n "$rounds" -range "$part")
        b=$(spent_all "${server[$p]}")
        note "http-$p-$c-$part" "$(value mb_s <<<"$out")"
        note "http-cpu-$p-$c-$part" "$(awk -v cpu=$((b - a)) -v n="$(value bytes <<<"$out")" 'BEGIN {print cpu / n}')"
        [ "$c:$part" != 40:0 ] || note "http-last-$p" "$(awk -v t="$(value last_ms <<<"$out")" -v n="$rounds" 'BEGIN {print t / n}')"
      done
    done
  done
  for c in 1 40; do
    compare "HTTP: 38 MB to $c at once, MB/s, nginx" "$(median http-ours-$c-0)" "$(median http-nginx-$c-0)" '>=' 0.9
    compare "HTTP: the same, CPU s per GB" "$(median http-cpu-ours-$c-0)" "$(median http-cpu-nginx-$c-0)" '<=' 1.5
  done
  compare "HTTP: 38 MB to 40 at once, ms until the last is done" "$(median http-last-ours)" "$(median http-last-nginx)" '<=' 1.1
  # net/http takes two more system calls and two more wake-ups for a request than nginx: these two guard
  # against getting worse.
  for c in 1 40; do
    compare "HTTP: by ranges of 127 sectors to $c at once, MB/s, nginx" "$(median http-ours-$c-65024)" "$(median http-nginx-$c-65024)" '>=' 0.4
  done
}
