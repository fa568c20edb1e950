package tgtsim

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
)

// gate decides on logins as tgt does: whoever fits one rule, by address or by name, gets in, and is
// asked for an account when the target has one.
type gate struct{ s *Sim }

// Admit implements iscsi.Gate.
func (g gate) Admit(by iscsi.Identity, name string) (iscsi.Grant, error) {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byName(name)
	if t == nil || !t.admits(by) {
		s.counters["login.refused"]++
		return iscsi.Grant{}, fault.New(fault.NotFound, "masked")
	}
	if t.offline {
		return iscsi.Grant{}, fault.New(fault.Busy, "the target is offline")
	}
	grant := iscsi.Grant{Units: map[uint16]iscsi.Device{}}
	for lun, d := range t.units {
		grant.Units[lun] = d
	}
	if len(t.accounts) > 0 {
		grant.Account = iscsi.Account{User: t.accounts[0], Secret: s.accounts[t.accounts[0]]}
	}
	return grant, nil
}

// Visible implements iscsi.Gate.
func (g gate) Visible(by iscsi.Identity) []string {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	var out []string
	for _, t := range g.s.sorted() {
		if t.admits(by) {
			out = append(out, t.name)
		}
	}
	return out
}

// Opened implements iscsi.Gate.
func (g gate) Opened(n iscsi.Nexus) {
	g.s.count("login")
	g.s.cfg.Backend.Session(n.Target, n.By, true)
}

// Ended implements iscsi.Gate.
func (g gate) Ended(n iscsi.Nexus) { g.s.cfg.Backend.Session(n.Target, n.By, false) }

func (t *target) admits(by iscsi.Identity) bool {
	return slices.Contains(t.names, by.Name) || slices.ContainsFunc(t.addresses, func(rule string) bool { return matches(rule, by.Address) })
}

// matches is ip_match of tgt: ALL, a network, or one address.
func matches(rule string, from netip.Addr) bool {
	if rule == "ALL" {
		return true
	}
	if strings.Contains(rule, "/") {
		p, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(rule))
		return err == nil && p.Masked() == p && p.Bits() < from.BitLen() && p.Contains(from)
	}
	a, err := netip.ParseAddr(strings.Trim(rule, "[]"))
	return err == nil && a == from
}

const pageSize = 4096

type page [pageSize]byte

// disk is a volume's data: pages that were written.
type disk struct {
	sim  *Sim
	path string
	size int64

	mu     sync.Mutex
	volume string
	pages  map[int64]*page
}

func (d *disk) setVolume(name string) { d.mu.Lock(); d.volume = name; d.mu.Unlock() }

// Blocks implements iscsi.Device.
func (d *disk) Blocks() uint64 { return uint64(d.size) / iscsi.BlockSize }

// Serial implements iscsi.Device: the same for the same volume, whatever the daemon's numbers are.
func (d *disk) Serial() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := sha256.Sum256([]byte(d.volume))
	return hex.EncodeToString(sum[:8])
}

// ReadAt implements iscsi.Device.
func (d *disk) ReadAt(_ iscsi.Identity, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), int(pageSize-off%pageSize))
		if pg := d.pages[off/pageSize]; pg != nil {
			copy(p[:n], pg[off%pageSize:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt implements iscsi.Device.
func (d *disk) WriteAt(by iscsi.Identity, p []byte, off int64) error {
	d.mu.Lock()
	w := Write{Volume: d.volume, By: by, LBA: uint64(off) / iscsi.BlockSize, Data: p}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), int(pageSize-off%pageSize))
		pg := d.pages[off/pageSize]
		if pg == nil {
			pg = new(page)
			d.pages[off/pageSize] = pg
		}
		copy(pg[off%pageSize:], rest[:n])
		rest, off = rest[n:], off+int64(n)
	}
	d.mu.Unlock()
	d.sim.count("write")
	d.sim.cfg.Backend.Wrote(w)
	return nil
}
