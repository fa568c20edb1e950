# Puts the peers in place: Debian's packages, atftpd unpacked (it conflicts with other TFTP servers), and
# coredhcp from its Go module, which is required by a module of its own.
install() {
  local need=()
  command -v perfdhcp >/dev/null || need+=(kea-admin)
  command -v dnsmasq >/dev/null || need+=(dnsmasq-base)
  command -v ipmipower >/dev/null || need+=(freeipmi-tools)
  command -v ipmi_sim >/dev/null || need+=(openipmi)
  command -v nginx >/dev/null || need+=(nginx-light)
  command -v in.tftpd >/dev/null || need+=(tftpd-hpa)
  if [ ${#need[@]} -gt 0 ]; then
    echo "installing ${need[*]}" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
  fi
  # Inside the checkout, so that a second run needs neither network nor compiler.
  cache=$(cd ../.. && pwd)/.cache/peers
  mkdir -p "$cache"
  if [ ! -x "$cache/atftpd/usr/sbin/atftpd" ]; then
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download atftpd && dpkg -x atftpd_*.deb "$cache/atftpd")
  fi
  (cd ../.. && CGO_ENABLED=0 go build -o "$cache/ours" ./test/peers/ours)
  (cd coredhcp && CGO_ENABLED=0 go build -o "$cache/coredhcp" github.com/coredhcp/coredhcp/cmds/coredhcp)
  ours=$cache/ours
}
