package tgt

import (
	"net/netip"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// MaxEpoch is the newest epoch that a marker can carry: 28 bits, less the broadcast address.
const MaxEpoch = 1<<28 - 2

// A marker is an access rule for an address of class E, 240.0.0.0/4, whose low 28 bits are the epoch.
// Such an address is never the source of a packet (RFC 1112 section 4, RFC 6890 table 15), so the rule
// admits nobody; it is where a target keeps the epoch of its mask.
func classE() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4) }

// unsettled is the marker of epoch 0: a revocation has begun and is not yet confirmed.
const unsettled = "240.0.0.0"

func marker(epoch uint64) string {
	return netip.AddrFrom4([4]byte{0xf0 | byte(epoch>>24), byte(epoch >> 16), byte(epoch >> 8), byte(epoch)}).String()
}

// Rules is the access list of a target, taken apart.
type Rules struct {
	Addresses []netip.Addr // plain addresses that may log in, in order of the list
	Epoch     uint64       // newest marker; 0 when there is none
	Markers   []string     // all markers, also older ones that a crash left
	Unsettled bool         // a revocation was begun and not confirmed
	// Loose are rules that an address fence cannot rely on: ALL, a network, an initiator name, an
	// address in another spelling. tgt admits whoever fits any one rule.
	Loose []string
}

// ParseRules takes an access list apart.
func ParseRules(list []string) Rules {
	var r Rules
	for _, rule := range list {
		a, err := netip.ParseAddr(rule)
		v4 := err == nil && a.Is4()
		switch {
		case rule == unsettled:
			r.Unsettled = true
		case err != nil || a.String() != rule || a.Zone() != "" || a.Is4In6() || rule == "255.255.255.255":
			r.Loose = append(r.Loose, rule)
		case v4 && classE().Contains(a):
			b := a.As4()
			epoch := uint64(b[0]&0xf)<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
			r.Epoch = max(r.Epoch, epoch)
			r.Markers = append(r.Markers, rule)
		default:
			r.Addresses = append(r.Addresses, a)
		}
	}
	return r
}

// initiators is everybody the rules admit, as a Mask says it. Loose rules are part of it, so that
// nobody takes a target that is open to all for a fenced one.
func (r Rules) initiators() []string {
	out := []string{}
	for _, a := range r.Addresses {
		out = append(out, a.String())
	}
	out = append(out, r.Loose...)
	slices.Sort(out)
	return slices.Compact(out)
}

// ours reports whether a mask of ours was set on the target before.
func (r Rules) ours() bool { return r.Epoch > 0 || r.Unsettled }

// parseInitiator reads an address that may be granted.
func parseInitiator(s string) (netip.Addr, error) {
	r := ParseRules([]string{s})
	wwpn := len(s) == 23 && strings.Count(s, ":") == 7 // reads as IPv6 when no pair begins with 0
	if len(r.Addresses) != 1 || wwpn || r.Addresses[0].IsUnspecified() || r.Addresses[0].IsMulticast() {
		return netip.Addr{}, fault.Newf(fault.Invalid, "initiator %q is no plain IP address in its usual spelling", s)
	}
	return r.Addresses[0], nil
}
