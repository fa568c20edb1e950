package vswitch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/vswitch"
)

var (
	alice     = vswitch.MAC{2, 0, 0, 0, 0, 1}
	bob       = vswitch.MAC{2, 0, 0, 0, 0, 2}
	carol     = vswitch.MAC{2, 0, 0, 0, 0, 3}
	broadcast = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eth builds a frame; tag 0 is none.
func eth(dst, src vswitch.MAC, tag int, payload string) []byte {
	b := append(dst[:], src[:]...)
	if tag != 0 {
		b = binary.BigEndian.AppendUint16(b, 0x8100)
		b = binary.BigEndian.AppendUint16(b, uint16(tag))
	}
	return append(append(b, 0x08, 0x00), payload...)
}

// bench is a switch with one wire in each port.
type bench struct {
	t     *testing.T
	sw    *vswitch.Switch
	ports map[string]*vswitch.Port
	wires map[string]*vswitch.Wire
	now   time.Time
}

func newBench(t *testing.T, ports map[string]vswitch.Settings) *bench {
	b := &bench{t: t, ports: map[string]*vswitch.Port{}, wires: map[string]*vswitch.Wire{}, now: time.Unix(1000, 0)}
	b.sw = vswitch.New(func() time.Time { return b.now })
	for name, s := range ports {
		p, err := b.sw.Add(name, s)
		must(t, err)
		w, err := p.Connect()
		must(t, err)
		b.ports[name], b.wires[name] = p, w
	}
	return b
}

// send gives a frame to one port and says what came out of each: forwarding is done when Send returns.
func (b *bench) send(port string, frame []byte) map[string][]byte {
	b.t.Helper()
	b.wires[port].Send(frame)
	got := map[string][]byte{}
	for name, w := range b.wires {
		select {
		case f := <-w.Frames():
			got[name] = f
		default:
		}
	}
	return got
}

func (b *bench) want(what string, got map[string][]byte, want map[string][]byte) {
	b.t.Helper()
	for name := range b.wires {
		if !bytes.Equal(got[name], want[name]) {
			b.t.Errorf("%s: port %s got %x, want %x", what, name, got[name], want[name])
		}
	}
}

func TestVLANsKeepApart(t *testing.T) {
	b := newBench(t, map[string]vswitch.Settings{
		"a10": {Access: 10}, "b10": {Access: 10}, "c20": {Access: 20}, "tagged": {Access: 20, Tagged: []int{10}},
		"trunk": {Trunk: true}, "shut": {Access: 10, Shut: true}, "none": {},
	})
	plain, with10, with20 := eth(broadcast, alice, 0, "hello"), eth(broadcast, alice, 10, "hello"), eth(broadcast, alice, 20, "hello")
	b.want("untagged on 10", b.send("a10", plain), map[string][]byte{"b10": plain, "tagged": with10, "trunk": with10})
	b.want("untagged on 20", b.send("c20", plain), map[string][]byte{"tagged": plain, "trunk": with20})
	b.want("tagged 10 in", b.send("tagged", with10), map[string][]byte{"a10": plain, "b10": plain, "trunk": with10})
	b.want("trunk 20 in", b.send("trunk", with20), map[string][]byte{"c20": plain, "tagged": plain})
	b.want("priority tag", b.send("a10", prio(plain)), map[string][]byte{"b10": plain, "tagged": with10, "trunk": with10})
	b.want("a tag of its own VLAN", b.send("a10", with10), nil)
	b.want("a tag it does not carry", b.send("tagged", eth(broadcast, alice, 30, "x")), nil)
	b.want("no VLAN", b.send("none", plain), nil)
	b.want("untagged on a trunk", b.send("trunk", plain), nil)
	b.want("shut", b.send("shut", plain), nil)
	if c := b.ports["a10"].Counters(); c.RxFrames != 3 || c.RxOtherVLAN != 1 || c.TxFrames != 1 {
		t.Errorf("counters of a10: %+v", c)
	}
	if c := b.ports["shut"].Counters(); c.RxShut != 1 || c.TxFrames != 0 {
		t.Errorf("counters of shut: %+v", c)
	}
}

// prio puts a tag of VLAN 0, priority 7, into a frame.
func prio(f []byte) []byte {
	return append(append(bytes.Clone(f[:12]), 0x81, 0, 0xe0, 0), f[12:]...)
}

func TestLearnsAndForgets(t *testing.T) {
	b := newBench(t, map[string]vswitch.Settings{"a": {Access: 10}, "b": {Access: 10}, "c": {Access: 10}, "other": {Access: 20}})
	toAlice, toBob := eth(alice, bob, 0, "x"), eth(bob, alice, 0, "x")
	b.want("nobody is known", b.send("a", toBob), map[string][]byte{"b": toBob, "c": toBob})
	b.want("alice is known", b.send("b", toAlice), map[string][]byte{"a": toAlice})
	if at, ok := b.sw.Locate(10, alice); !ok || at != "a" {
		t.Errorf("alice is at %q, %v", at, ok)
	}
	if _, ok := b.sw.Locate(20, alice); ok {
		t.Error("alice is known on a VLAN where she never was")
	}
	b.want("one's own port", b.send("a", eth(alice, carol, 0, "x")), nil)

	b.send("c", eth(broadcast, alice, 0, "moved"))
	b.want("alice has moved", b.send("b", toAlice), map[string][]byte{"c": toAlice})

	must(t, b.ports["c"].Set(vswitch.Settings{Access: 20}))
	b.want("her port changed", b.send("b", toAlice), map[string][]byte{"a": toAlice})
	must(t, b.ports["c"].Set(vswitch.Settings{Access: 10}))

	b.want("bob is known", b.send("a", toBob), map[string][]byte{"b": toBob})
	b.now = b.now.Add(301 * time.Second)
	b.want("bob is too old", b.send("c", eth(bob, carol, 0, "x")), map[string][]byte{"a": eth(bob, carol, 0, "x"), "b": eth(bob, carol, 0, "x")})

	b.send("b", toAlice)
	b.wires["b"].Close()
	b.wires["b"].Close()
	if _, ok := b.sw.Locate(10, bob); ok || b.ports["b"].Link() {
		t.Error("a pulled wire leaves an address or a link behind")
	}
	w, err := b.ports["b"].Connect()
	must(t, err)
	if _, err := b.ports["b"].Connect(); !fault.Is(err, fault.Busy) || !b.ports["b"].Link() {
		t.Errorf("two wires in one port: %v", err)
	}
	b.wires["b"].Send(toAlice) // the pulled one
	if c := b.ports["b"].Counters(); c.Links != 2 || c.RxFrames != 4 {
		t.Errorf("counters %+v", c)
	}
	w.Close()
}

func TestAFloodOfAddressesIsBounded(t *testing.T) {
	b := newBench(t, map[string]vswitch.Settings{"a": {Access: 10}, "b": {Access: 10}})
	b.send("b", eth(broadcast, bob, 0, "x"))
	for i := range 5000 {
		b.send("a", eth(broadcast, vswitch.MAC{2, 9, 0, 0, byte(i >> 8), byte(i)}, 0, "x"))
	}
	if c := b.ports["a"].Counters(); c.Unlearned != 5000-1024 {
		t.Errorf("%d were not learned", c.Unlearned)
	}
	if at, ok := b.sw.Locate(10, bob); !ok || at != "b" {
		t.Error("the flood pushed out another port's address")
	}
	b.now = b.now.Add(301 * time.Second)
	b.send("a", eth(broadcast, alice, 0, "x"))
	if _, ok := b.sw.Locate(10, alice); !ok {
		t.Error("old addresses make no room for new ones")
	}
}

func TestWrongSettings(t *testing.T) {
	sw := vswitch.New(nil)
	p, err := sw.Add("p", vswitch.Settings{Access: 10})
	must(t, err)
	for _, s := range []vswitch.Settings{{Access: -1}, {Access: 4095}, {Tagged: []int{0}}, {Tagged: []int{10, 5000}}} {
		if _, err := sw.Add("q", s); !fault.Is(err, fault.Invalid) {
			t.Errorf("Add %+v: %v", s, err)
		}
		if err := p.Set(s); !fault.Is(err, fault.Invalid) || p.Settings().Access != 10 {
			t.Errorf("Set %+v: %v", s, err)
		}
	}
	if _, err := sw.Add("p", vswitch.Settings{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second port of one name: %v", err)
	}
}

// plug serves one end of a stream by a port and returns the other, which is QEMU's.
func plug(t *testing.T, sw *vswitch.Switch, name string, s vswitch.Settings) (far net.Conn, done chan error) {
	t.Helper()
	p, err := sw.Add(name, s)
	must(t, err)
	near, far := net.Pipe()
	done = make(chan error, 1)
	go func() { done <- p.Serve(t.Context(), near) }()
	for end := time.Now().Add(10 * time.Second); !p.Link(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no link")
		}
	}
	t.Cleanup(func() { _ = far.Close() })
	return far, done
}

func wire(frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

func TestStreams(t *testing.T) {
	sw := vswitch.New(nil)
	a, doneA := plug(t, sw, "a", vswitch.Settings{Access: 10})
	b, doneB := plug(t, sw, "b", vswitch.Settings{Tagged: []int{10}})
	sent, want := eth(broadcast, alice, 0, "hello"), wire(eth(broadcast, alice, 10, "hello"))
	go func() {
		_, _ = a.Write(wire([]byte("tiny"))) // malformed, and the stream goes on
		_, _ = a.Write(wire(sent))
	}()
	got := make([]byte, len(want))
	must(t, b.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%x, %v; want %x", got, err, want)
	}
	must(t, b.Close())
	must(t, <-doneB)
	go func() { _, _ = a.Write([]byte{0xff, 0xff, 0xff, 0xff}) }()
	if err := <-doneA; !fault.Is(err, fault.Invalid) {
		t.Errorf("a length of 4 GiB: %v", err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	p, err := vswitch.New(nil).Add("p", vswitch.Settings{Access: 10})
	must(t, err)
	near, far := net.Pipe()
	defer far.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, near) }()
	cancel()
	must(t, <-done)
	if p.Link() {
		t.Error("the link is still up")
	}
}

// FuzzStream feeds a port with what a hostile machine sends: nothing may come out on another VLAN, and
// every frame that comes out must be one.
func FuzzStream(f *testing.F) {
	f.Add(wire(eth(broadcast, alice, 0, "plain")))
	f.Add(wire(eth(bob, alice, 20, "tagged")))
	f.Add(wire(prio(eth(bob, alice, 20, "two tags"))))
	f.Add(append(wire(eth(broadcast, alice, 0, "")[:13]), wire(eth(broadcast, alice, 4095, ""))...))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0x24, 0x13, 1, 2, 3})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		b := newBench(t, map[string]vswitch.Settings{"ten": {Access: 10}, "twenty": {Access: 20}, "thirty": {Access: 30}})
		p, err := b.sw.Add("hostile", vswitch.Settings{Access: 10, Tagged: []int{20}})
		must(t, err)
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- p.Serve(t.Context(), near) }()
		go func() {
			_, _ = io.Copy(io.Discard, far)
		}()
		_, _ = far.Write(in)
		_ = far.Close()
		if err := <-done; err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatal(err)
		}
		for name, w := range b.wires {
			for len(w.Frames()) > 0 {
				if out := <-w.Frames(); len(out) < 14 || name == "thirty" {
					t.Fatalf("port %s got %x", name, out)
				}
			}
		}
		c := p.Counters()
		if c.RxFrames < c.Malformed+c.RxOtherVLAN {
			t.Fatalf("counters %+v", c)
		}
	})
}
