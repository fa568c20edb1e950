# DHCP with 10,000 reservations beside coredhcp, loaded by Kea's perfdhcp as a relay.

answers() { inside "$1" timeout 5 perfdhcp -4 -r 50 -n 10 -R 1000 -l 10.200.0.2 10.200.0.1 | grep '^received packets: [1-9]'; }

bench_dhcp() {
  local n=10000 clients=5000 rate=500 seconds=4 i p a b out
  # perfdhcp adds a client's number to 00:0c:01:02:03:04, where the last byte overflows without a carry, so
  # that its first clients have the numbers below. It stays clear of the end.
  awk -v n=$n 'BEGIN {for (i = 0; i < n; i++) {v = 131840 + i; j = i + 256
    printf "00:0c:01:%02x:%02x:%02x 10.129.%d.%d\n", int(v / 65536), int(v / 256) % 256, v % 256, int(j / 256), j % 256}}' >"$work/hosts"
  sed 's|$|/9|' "$work/hosts" >"$work/hosts-ours"
  cat >"$work/coredhcp.yml" <<YML
server4:
  listen:
    - "10.200.0.1%eth0"
  plugins:
    - server_id: 10.200.0.1
    - netmask: 255.128.0.0
    - lease_time: 7200s
    - nbp: "tftp://10.200.0.1/snponly.efi"
    - file: $work/hosts
YML
  declare -A server
  pair ours
  start ours-s dhcp-ours "$ours" dhcp -if eth0 -id 10.200.0.1 -relay 10.200.0.2/32 -hosts "$work/hosts-ours"
  server[ours]=$pid
  pair peer
  start peer-s dhcp-peer "$cache/coredhcp" -c "$work/coredhcp.yml" -L error
  server[peer]=$pid
  for p in ours peer; do until_ok answers $p-c; done

  for i in $(seq "$ROUNDS"); do
    for p in ours peer; do
      a=$(spent "${server[$p]}")
      out=$(inside $p-c timeout $((seconds + 20)) perfdhcp -4 -r $rate -R $((n - 100)) -p $seconds -W 1000000 -l 10.200.0.2 10.200.0.1 || true) # drops are a status too
      b=$(spent "${server[$p]}")
      echo "$out" >"$work/dhcp-rate-$p-$i"
      note dhcp-cpu-$p "$(awk -v cpu=$((b - a)) '/^received packets:/ {n = $3} END {printf "%.1f", cpu / 1000 / n}' <<<"$out")"
      note dhcp-lost-$p "$(awk '/^sent packets:/ {if (!s) s = $3} /^received packets:/ {r = $3} END {print s - r}' <<<"$out")"
    done
  done
  compare "DHCP: $n reservations, CPU us per DORA, coredhcp" "$(median dhcp-cpu-ours)" "$(median dhcp-cpu-peer)" '<=' 1.0
  none "DHCP: exchanges not finished at $rate/s, all rounds" "$(total dhcp-lost-ours)" "$(total dhcp-lost-peer)"

  for i in $(seq "$ROUNDS"); do
    for p in ours peer; do
      inside $p-c "$ours" time timeout 60 perfdhcp -4 --scenario avalanche -R $clients -l 10.200.0.2 10.200.0.1 >"$work/dhcp-storm-$p-$i"
      note dhcp-storm-$p "$(value wall_ms <"$work/dhcp-storm-$p-$i")"
    done
  done
  compare "DHCP: storm of $clients clients, ms until all have leases" "$(median dhcp-storm-ours)" "$(median dhcp-storm-peer)" '<=' 1.0
  # What is lost beyond this is lost by perfdhcp's own socket, and asked for again.
  none "DHCP: messages lost by the server's socket, all rounds" "$(overrun ours-s)" "$(overrun peer-s)"
}
