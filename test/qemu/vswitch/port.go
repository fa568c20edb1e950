package vswitch

import (
	"rerack.dev/rerack/internal/fault"
)

// queued is how many frames wait for a far end that does not take them; more are lost, as on any wire.
const queued = 512

// Port is one port of a Switch.
type Port struct {
	sw   *Switch
	name string

	// All below is guarded by the switch's lock.
	set   Settings
	out   chan []byte // to the far end; nil without a link
	known int         // addresses learned here
	count Counters
}

// Counters of a port since it was made.
type Counters struct {
	RxFrames, RxBytes uint64 // came in, whatever became of them
	TxFrames, TxBytes uint64
	Malformed         uint64 // came in and were no frames
	RxShut            uint64 // came in while the port was shut
	RxOtherVLAN       uint64 // came in for a VLAN that the port does not carry
	TxLost            uint64 // the far end did not take them in time
	Unlearned         uint64 // source addresses beyond what a port may show
	Links             uint64 // how often a far end was connected
}

// Name is the port's.
func (p *Port) Name() string { return p.name }

// Set changes what the port carries, from the next frame on. Addresses learned on it are forgotten. It
// returns fault.Invalid and changes nothing when the settings are wrong.
func (p *Port) Set(set Settings) error {
	if err := set.validate(); err != nil {
		return fault.Wrap(err, "set", "port "+p.name)
	}
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	p.set = clone(set)
	p.sw.forget(func(l *learned) bool { return l.port == p })
	return nil
}

// Settings are the present ones.
func (p *Port) Settings() Settings {
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	return clone(p.set)
}

// Counters reads the port's.
func (p *Port) Counters() Counters {
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	return p.count
}

// Link reports whether the port sees a far end: one is connected, and the port is not shut.
func (p *Port) Link() bool {
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	return p.out != nil && !p.set.Shut
}

// Wire is the far end of a port: what is plugged into it. Frames are whole Ethernet frames without
// checksum.
type Wire struct {
	port *Port
	out  chan []byte
}

// Connect plugs a wire in. It fails with fault.Busy when there is one already.
func (p *Port) Connect() (*Wire, error) {
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	if p.out != nil {
		return nil, &fault.Error{Kind: fault.Busy, Where: "port " + p.name, What: "connect", Evidence: "something else is plugged in"}
	}
	w := &Wire{port: p, out: make(chan []byte, queued)}
	p.out = w.out
	p.count.Links++
	return w, nil
}

// Frames are those that leave the port. The channel ends when the wire is pulled.
func (w *Wire) Frames() <-chan []byte { return w.out }

// Send gives a frame to the port. The switch keeps no part of it.
func (w *Wire) Send(frame []byte) {
	w.port.sw.mu.Lock()
	live := w.port.out == w.out
	w.port.sw.mu.Unlock()
	if live {
		w.port.sw.forward(w.port, frame)
	}
}

// Close pulls the wire out of its port. It may be called again.
func (w *Wire) Close() {
	p := w.port
	p.sw.mu.Lock()
	defer p.sw.mu.Unlock()
	if p.out != w.out {
		return
	}
	p.out = nil
	close(w.out)
	p.sw.forget(func(l *learned) bool { return l.port == p })
}

// send lets a frame leave, if the port carries its VLAN. It is called with the switch's lock held.
func (p *Port) send(vlan int, f *frame) {
	tag := 0
	switch {
	case p.out == nil || p.set.Shut:
		return
	case vlan == p.set.Access:
	case p.set.tags(vlan):
		tag = vlan
	default:
		return
	}
	b := f.bytes(tag)
	select {
	case p.out <- b:
		p.count.TxFrames++
		p.count.TxBytes += uint64(len(b))
	default:
		p.count.TxLost++
	}
}
