package lab

import (
	"context"
	"net"
	"net/netip"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/test/qemu/gateway"
	"rerack.dev/rerack/test/qemu/netstack"
)

// portals are where real arrays are found, by every network's gateway.
func (l *Lab) portals() map[netip.AddrPort]*realArray {
	out := map[netip.AddrPort]*realArray{}
	for name, a := range l.arrays {
		r, ok := a.(*realArray)
		if !ok {
			continue
		}
		for _, p := range l.topo.Arrays[name].Spec.Portals {
			if at, err := netip.ParseAddrPort(p); err == nil {
				out[at] = r
			}
		}
	}
	return out
}

// openPortals lets machines on a network reach the real arrays through its gateway.
func (l *Lab) openPortals(h *netstack.Host, vlan int) error {
	for at, array := range l.portals() {
		ln, err := h.Listen(at)
		if err != nil {
			return err
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			gateway.ServeTCP(l.ctx, ln, func(ctx context.Context, from net.Addr) (net.Conn, error) {
				return array.dial(ctx, h, vlan, from)
			}, l.log)
		}()
		l.onClose(func() error {
			err := ln.Close()
			<-ended
			return err
		})
	}
	return nil
}

// machineAt is the machine whose port frames of an address come in by, whatever it calls itself.
func (l *Lab) machineAt(h *netstack.Host, vlan int, from net.Addr) (*machine, error) {
	at, err := netip.ParseAddrPort(from.String())
	if err == nil {
		if mac, ok := h.EthernetOf(at.Addr()); ok {
			if _, m, ok := l.cableOf(vlan, mac); ok {
				return m, nil
			}
		}
	}
	return nil, &fault.Error{Kind: fault.NotFound, Where: from.String(), What: "find its machine"}
}

// dial connects a machine to the array: from the address that the array knows its hardware by.
func (a *realArray) dial(ctx context.Context, h *netstack.Host, vlan int, from net.Addr) (net.Conn, error) {
	m, err := a.lab.machineAt(h, vlan, from)
	if err != nil {
		return nil, err
	}
	source := m.spec.StorageAddress
	if !source.IsValid() {
		return nil, &fault.Error{Kind: fault.Unsupported, Where: "machine " + m.name, What: "reach array " + a.name, Evidence: "it has no storage address"}
	}
	d := net.Dialer{Timeout: ioTimeout, LocalAddr: &net.TCPAddr{IP: source.AsSlice()}}
	c, err := d.DialContext(ctx, "tcp4", a.daemon.Portal.String())
	if err != nil {
		return nil, err
	}
	if !a.take(c) {
		_ = c.Close()
		return nil, &fault.Error{Kind: fault.Unreachable, Where: "array " + a.name, What: "connect", Evidence: "it has no power"}
	}
	s := &sanSession{array: a, machine: m}
	return &sanConn{Conn: iscsi.Tap(c, iscsi.Watcher{Login: s.login, Wrote: s.wrote, Blind: s.blind}), session: s, raw: c}, nil
}

// sanSession is what one machine does at a real array.
type sanSession struct {
	array   *realArray
	machine *machine
	target  string // once logged in; guarded by the array's lock
}

func (s *sanSession) login(initiator, target string) {
	if target == "" {
		return // a discovery
	}
	s.array.mu.Lock()
	s.target = target
	s.array.mu.Unlock()
	s.array.lab.log.Debug("iSCSI login", "machine", s.machine.name, "target", target, "initiator", initiator)
	s.tell(target, true)
}

func (s *sanSession) tell(target string, open bool) {
	l := s.array.lab
	if err := l.world.SetSession(s.array.name, target, s.machine.spec.StorageAddress.String(), open); err != nil {
		l.log.Error("session not recorded", "array", s.array.name, "volume", target, "err", err)
	}
}

func (s *sanSession) blind(why string) {
	s.array.lab.log.Error("cannot see what is written", "array", s.array.name, "machine", s.machine.name, "why", why)
}

// wrote records a write that the array has taken. Who on the machine wrote it is whoever has the volume there.
func (s *sanSession) wrote(uint16) {
	l := s.array.lab
	s.array.mu.Lock()
	volume := l.plan.targets[topology.IQN(s.target)]
	s.array.mu.Unlock()
	for _, name := range l.topo.Names(topology.KindWorkload) {
		for _, u := range l.topo.Workloads[name].Spec.Volumes {
			if u.Volume != volume {
				continue
			}
			vm, epoch := "", l.epochOf(name)
			for _, r := range l.world.Holders(name) {
				if r.Machine == s.machine.name {
					vm, epoch = r.VM, r.Epoch
				}
			}
			if err := l.world.Arrived(s.machine.name, vm, volume, name, epoch); err != nil {
				l.log.Error("write not recorded", "volume", volume, "err", err)
			}
			return
		}
	}
}

// epochOf is what a system on a volume takes for its epoch: that of the volume's mask. It has no command line
// that could tell it.
func (l *Lab) epochOf(workload string) uint64 {
	for _, u := range l.topo.Workloads[workload].Spec.Volumes {
		v := l.topo.Volumes[u.Volume].Spec
		if mask, ok := l.world.MaskOf(v.Array, string(v.Target)); ok && u.Boot {
			return mask.Epoch
		}
	}
	return firstEpoch
}

// sanConn is a connection to a real array, which ends when the array loses power.
type sanConn struct {
	net.Conn
	session *sanSession
	raw     net.Conn
	closed  bool
}

// CloseWrite implements what gateway.Splice looks for.
func (c *sanConn) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// Close implements net.Conn.
func (c *sanConn) Close() error {
	a := c.session.array
	a.mu.Lock()
	first, target := !c.closed, c.session.target
	c.closed = true
	a.mu.Unlock()
	if !first {
		return nil
	}
	a.drop(c.raw)
	if target != "" {
		c.session.tell(target, false)
	}
	return nil
}
