# TFTP of a file of 1 MiB to 100 clients at once, beside dnsmasq and atftpd; and to 1 and 40 with each block
# size, beside tftpd-hpa too.

bench_tftp() {
  local dir=$work/tftp i p w out a b c size best
  mkdir -p "$dir"
  head -c 1048576 /dev/urandom >"$dir/loader"
  chmod -R a+rX "$work"
  declare -A server
  for p in ours dnsmasq atftpd hpa; do space "tftp-$p"; done
  start tftp-ours tftp-ours "$ours" tftp -root "$dir"
  server[ours]=$pid
  start tftp-dnsmasq tftp-dnsmasq dnsmasq -k -C /dev/null --port=0 --enable-tftp --tftp-root="$dir" --listen-address=127.0.0.1 \
    --bind-interfaces -u root --log-facility=/dev/null --tftp-max=1000
  server[dnsmasq]=$pid
  start tftp-atftpd tftp-atftpd "$cache/atftpd/usr/sbin/atftpd" --daemon --no-fork --bind-address 127.0.0.1 --port 69 --maxthread 1000 \
    --user root --group root --logfile /dev/null "$dir"
  server[atftpd]=$pid
  # It leaves a process behind for each transfer, so its CPU is not counted.
  start tftp-hpa tftp-hpa in.tftpd -L -4 -a :69 -u root -s "$dir"
  server[hpa]=$pid
  local load=("$ours" fetch -file loader)
  for p in ours dnsmasq atftpd hpa; do until_ok inside tftp-$p "${load[@]}"; done

  for i in $(seq "$ROUNDS"); do
    for p in ours:1 dnsmasq:1 ours:16 atftpd:16; do
      w=${p#*:} p=${p%:*}
      out=$(inside tftp-$p "${load[@]}" -clients 100 -n 300 -window $w)
      note "tftp-$p-$w" "$(value mb_s <<<"$out")"
      note "tftp-granted-$p-$w" "$(value granted <<<"$out")"
    done
  done
  compare "TFTP: 1 MiB to 100 clients, window 1, MB/s, dnsmasq" "$(median tftp-ours-1)" "$(median tftp-dnsmasq-1)" '>=' 1.0
  compare "TFTP: the same, window 16, atftpd" "$(median tftp-ours-16)" "$(median tftp-atftpd-16)" '>=' 1.0
  compare "TFTP: windowsize granted of 16, atftpd" "$(median tftp-granted-ours-16)" "$(median tftp-granted-atftpd-16)" '>=' 1.0

  for i in $(seq "$ROUNDS"); do
    for size in 512 1024 1468; do
      for c in 1:10 40:40; do
        for p in ours dnsmasq hpa; do
          out=$(inside tftp-$p "${load[@]}" -clients "${c%:*}" -n "${c#*:}" -block $size)
          note "tftp-$p-$size-${c%:*}" "$(value mb_s <<<"$out")"
        done
      done
    done
    for w in 4 16; do
      for p in ours atftpd; do
        out=$(inside tftp-$p "${load[@]}" -clients 40 -n 200 -window $w)
        note "tftp-$p-w$w" "$(value mb_s <<<"$out")"
      done
    done
  done
  for size in 512 1024 1468; do
    for c in 1 40; do
      best=dnsmasq
      a=$(median tftp-dnsmasq-$size-$c) b=$(median tftp-hpa-$size-$c)
      if awk -v a="$a" -v b="$b" 'BEGIN {exit !(b > a)}'; then best=tftpd-hpa a=$b; fi
      compare "TFTP: 1 MiB to $c at once, blksize $size, MB/s, $best" "$(median tftp-ours-$size-$c)" "$a" '>=' 0.9
    done
  done
  for w in 4 16; do
    compare "TFTP: 1 MiB to 40 at once, window $w, MB/s, atftpd" "$(median tftp-ours-w$w)" "$(median tftp-atftpd-w$w)" '>=' 0.9
  done
}
