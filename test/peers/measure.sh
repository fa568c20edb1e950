# What all parts share: namespaces, rounds, medians, the table.

# space NAME makes a namespace with loopback only.
space() {
  ip netns add "$net-$1"
  spaces+=("$net-$1")
  ip -n "$net-$1" link set lo up
}

# pair NAME makes two namespaces joined by a cable: the clients' (NAME-c, 10.200.0.2/9) and the server's
# (NAME-s, 10.200.0.1/9).
pair() {
  space "$1-c"
  space "$1-s"
  ip -n "$net-$1-c" link add eth0 type veth peer name eth0 netns "$net-$1-s"
  ip -n "$net-$1-c" addr add 10.200.0.2/9 dev eth0
  ip -n "$net-$1-s" addr add 10.200.0.1/9 dev eth0
  ip -n "$net-$1-c" link set eth0 up
  ip -n "$net-$1-s" link set eth0 up
}

# inside SPACE COMMAND... runs a command inside.
inside() { ip netns exec "$net-$1" "${@:2}"; }

# start SPACE LOG COMMAND... starts a server and leaves its process id in $pid.
start() {
  ip netns exec "$net-$1" "${@:3}" >"$work/$2" 2>&1 </dev/null &
  pid=$!
  pids+=("$pid")
}

# until_ok COMMAND... waits, at most 30 s, until the command succeeds.
until_ok() {
  local end=$((SECONDS + 30))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "gave up waiting for: $*" >&2; exit 1; }
    sleep 0.2
  done
}

# spent PID prints the CPU time of a process in ns, all threads.
spent() { cat /proc/"$1"/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}'; }

# spent_all PID is spent of a process and its children.
spent_all() {
  local p sum=0
  for p in $1 $(cat /proc/"$1"/task/*/children); do sum=$((sum + $(spent "$p"))); done
  echo $sum
}

# overrun SPACE prints how many datagrams found the buffers of its UDP sockets full.
overrun() { inside "$1" awk 'NR > 1 {s += $NF} END {print s + 0}' /proc/net/udp; }

# note NAME VALUE keeps the figure of a round; median NAME and total NAME read them.
note() { echo "$2" >>"$work/figure-$1"; }
median() { sort -g "$work/figure-$1" | awk '{a[NR] = $1} END {print (a[int((NR + 1) / 2)] + a[int(NR / 2) + 1]) / 2}'; }
total() { awk '{s += $1} END {print s + 0}' "$work/figure-$1"; }

# value KEY reads "key=value" out of the text on standard input.
value() { grep -o "$1=[0-9.]*" | tail -1 | cut -d= -f2; }

row() { printf '%-62s %10s %10s %7s  %-8s %s\n' "$@" >&3; }

# compare TEXT OURS PEER OP TARGET prints a row with ours/peer; OP is <= or >=.
compare() {
  local ratio verdict=met
  ratio=$(awk -v a="$2" -v b="$3" 'BEGIN {printf "%.2f", a / b}')
  awk -v a="$2" -v b="$3" -v t="$5" -v op="$4" 'BEGIN {exit !(op == "<=" ? a <= t * b : a >= t * b)}' || { verdict=missed; missed=$((missed + 1)); }
  row "$1" "$(printf '%.4g' "$2")" "$(printf '%.4g' "$3")" "$ratio" "$4 $5" "$verdict"
}

# none TEXT OURS PEER prints a row of which ours must be 0.
none() {
  local verdict=met
  [ "$2" = 0 ] || { verdict=missed; missed=$((missed + 1)); }
  row "$1" "$2" "$3" "" "0" "$verdict"
}
