# Power status of 100 BMCs (OpenIPMI's ipmi_sim, a process each) beside FreeIPMI's ipmipower.

bench_ipmi() {
  local n=100 user=admin password=horse-battery i d
  space bmc
  printf 'mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n' >"$work/sim.emu"
  for i in $(seq $n); do
    d=$work/bmc-$i
    mkdir -p "$d"
    cat >"$d/lan.conf" <<LAN
name "b$i"
set_working_mc 0x20
  startlan 1
    addr 127.77.0.$i 623
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa1$(printf %014d "$i")
  endlan
  user 2 true "$user" "$password" admin 10 none md2 md5 straight
LAN
    start bmc "bmc-$i/log" ipmi_sim -n -c "$d/lan.conf" -f "$work/sim.emu" -s "$d"
  done
  local theirs=(ipmipower -D LAN_2_0 -h "127.77.0.[1-$n]" -u $user -p $password -l ADMIN -I 3 -W opensesspriv -s)
  local mine=("$ours" poll -n $n -user $user -password $password)
  until_ok inside bmc "${mine[@]}"

  local out
  for i in $(seq "$ROUNDS"); do
    out=$(inside bmc "$ours" time "${mine[@]}")
    note ipmi-cold-ours "$(value cpu_ms <<<"${out%%$'\n'*}")"
    out=$(inside bmc "$ours" time "${theirs[@]}")
    [ "$(grep -cE ': (on|off)' <<<"$out")" -eq $n ] || { echo "ipmipower: not all answered" >&2; exit 1; }
    note ipmi-cold-peer "$(value cpu_ms <<<"$out")"
    out=$(inside bmc "${mine[@]}" -rounds 21)
    note ipmi-held-ours "$(grep -v '^round=0' <<<"$out" | grep -o 'cpu_ms=[0-9.]*' | cut -d= -f2 | sort -g | sed -n 10p)"
  done
  compare "IPMI: power of $n BMCs, login each, CPU ms, ipmipower" "$(median ipmi-cold-ours)" "$(median ipmi-cold-peer)" '<=' 1.5
  compare "IPMI: the same on held sessions, ipmipower logging in" "$(median ipmi-held-ours)" "$(median ipmi-cold-peer)" '<=' 0.2

  # The same good BMCs with and without silent ones among them. Round 0 logs in, round 1 holds sessions;
  # the silent ones are asked in both, because it takes three silences until they are left alone. Rounds keep
  # a pace, so that the second one finds the simulators equally asleep, however long the first took.
  local good=$((n - 5)) k
  mine=("$ours" poll -n $good -user $user -password $password -rounds 2 -every 700ms -timeout 500ms -first 127.77.0.6)
  for i in $(seq $((5 * ROUNDS))); do
    for k in 0 5; do
      out=$(inside bmc "${mine[@]}" -holes $k)
      note "ipmi-login-$k" "$(grep '^round=0' <<<"$out" | value last_ms)"
      note "ipmi-hold-$k" "$(grep '^round=1' <<<"$out" | value last_ms)"
    done
  done
  compare "IPMI: last of $good good answers, ms, 5 silent / none, login" "$(median ipmi-login-5)" "$(median ipmi-login-0)" '<=' 1.05
  compare "IPMI: the same on held sessions" "$(median ipmi-hold-5)" "$(median ipmi-hold-0)" '<=' 1.05
}
