package gateway

import (
	"bytes"
	"net/netip"
	"testing"

	"rerack.dev/rerack/pxe/dhcp"
)

// FuzzRelay passes hostile messages both ways: a message that is passed on must be one that the product's
// server reads, and without what is for the relay alone when a machine gets it.
func FuzzRelay(f *testing.F) {
	seed := func(op byte, opts ...byte) []byte {
		b := dhcp.AppendHeader(nil, &dhcp.Header{Op: op, XID: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}})
		return dhcp.Finish(append(dhcp.AppendOption(b, dhcp.OptMessageType, byte(dhcp.Discover)), opts...))
	}
	reply := seed(dhcp.BootReply, dhcp.OptRelay, 4, dhcp.RelayCircuitID, 2, 'p', '1', dhcp.OptLease, 4, 0, 0, 0, 9)
	copy(reply[giaddrAt:], []byte{127, 6, 0, 1})
	f.Add(seed(dhcp.BootRequest))
	f.Add(seed(dhcp.BootRequest, dhcp.OptPad, dhcp.OptPad, 60, 3, 'P', 'X', 'E'))
	f.Add(reply)
	f.Add(seed(dhcp.BootRequest, 60, 200)) // longer than the message
	f.Add(seed(dhcp.BootRequest)[:optionsAt])
	f.Add([]byte{1, 1, 6, 0})
	g := &Gateway{cfg: Config{Link: netip.MustParseAddr("10.1.0.1"), Relay: netip.MustParseAddr("127.6.0.1"),
		Circuit: func(mac [6]byte) string { return string(bytes.Repeat(mac[:], 30)) }}}
	f.Fuzz(func(t *testing.T, in []byte) {
		if out, ok := g.outward(in); ok {
			var was, is dhcp.Packet
			if was.Parse(in) == nil && len(out) <= dhcp.MaxMessage {
				if err := is.Parse(out); err != nil || is.GIAddr != g.cfg.Relay || is.MAC != was.MAC || is.Type() != was.Type() {
					t.Fatalf("%x became %x: %v", in, out, err)
				}
			}
		}
		if out, _, ok := g.inward(in); ok {
			var is dhcp.Packet
			if is.Parse(out) == nil && (is.Has(dhcp.OptRelay) || !is.GIAddr.IsUnspecified()) {
				t.Fatalf("%x became %x", in, out)
			}
		}
	})
}
