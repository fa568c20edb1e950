// Package bootplane connects the boot servers to the state: it keeps their table at what the store says
// shall boot, makes milestones durable, and passes them to the workflow that waits.
package bootplane

import (
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sort"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/workflows"
)

// leaseTime is what DHCP grants: long, because a reservation never goes to anybody else.
const leaseTime = 24 * time.Hour

// Signaller passes a milestone on to a workflow.
type Signaller interface {
	Reached(ctx context.Context, workflowID string, m workflows.Milestone) error
}

// Plane is the state's side of the boot plane.
type Plane struct {
	Store   store.Store
	Table   *pxe.Table
	Signals Signaller
	CA      *pki.CA
	Now     func() time.Time
	Log     *slog.Logger
}

// intent translates a record into what the boot servers know.
func intent(b state.Boot) (pxe.Intent, error) {
	in := pxe.Intent{Machine: b.Name, Run: BootOf(b), Epoch: b.Epoch, Hostname: b.Hostname, Expires: b.Expires, Held: b.Held, SecureBoot: b.Secure, Nonce: b.Nonce}
	addr, err := netip.ParsePrefix(b.Address)
	if err != nil {
		return in, &fault.Error{Kind: fault.Invalid, Where: "boot record " + b.Name, What: "address", Evidence: b.Address, Err: err}
	}
	nic := pxe.NIC{Address: addr, Lease: leaseTime}
	if b.Gateway != "" {
		if nic.Gateway, err = netip.ParseAddr(b.Gateway); err != nil {
			return in, err
		}
	}
	for _, d := range b.DNS {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return in, err
		}
		nic.DNS = append(nic.DNS, a)
	}
	for _, s := range b.MACs {
		hw, err := net.ParseMAC(s)
		if err != nil || len(hw) != len(nic.MAC) {
			return in, &fault.Error{Kind: fault.Invalid, Where: "boot record " + b.Name, What: "MAC", Evidence: s}
		}
		nic.MAC = pxe.MAC(hw)
		in.NICs = append(in.NICs, nic)
	}
	in.Boot, err = what(b)
	return in, err
}

func what(b state.Boot) (*pxe.Boot, error) {
	if b.Type == string(topology.ImageSAN) {
		if b.SAN == nil {
			return &pxe.Boot{LocalDisk: true}, nil
		}
		portal, err := netip.ParseAddrPort(b.SAN.Portal)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: "boot record " + b.Name, What: "iSCSI portal", Evidence: b.SAN.Portal, Err: err}
		}
		return &pxe.Boot{ISCSI: &ipxe.Target{Portal: portal, Name: b.SAN.Target, LUN: uint16(b.SAN.LUN), Initiator: b.SAN.Initiator}, CHAP: b.SAN.CHAP}, nil
	}
	if topology.ImageType(b.Type).OneFile() {
		form := pxe.FormDisk
		if b.Type == string(topology.ImageEFI) {
			form = pxe.FormEFI
		}
		return &pxe.Boot{HTTP: &pxe.Image{File: pxe.Digest(b.File), Form: form}}, nil
	}
	k := &pxe.Kernel{Kernel: pxe.Digest(b.Kernel)}
	for _, d := range b.Initrds {
		k.Initrds = append(k.Initrds, pxe.Digest(d))
	}
	keys := make([]string, 0, len(b.Cmdline))
	for key := range b.Cmdline {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		k.Params = append(k.Params, ipxe.Param{Key: key, Value: b.Cmdline[key]})
	}
	return &pxe.Boot{Kernel: k}, nil
}

// BootOf names one boot: what a token is bound to. It is the workflow's id and not the run's, because a
// run may boot the same VM again elsewhere, and it has a number when the machine booted anew by itself.
func BootOf(b state.Boot) string {
	if b.Reboots == 0 {
		return b.Workflow
	}
	return fmt.Sprintf("%s/again-%d", b.Workflow, b.Reboots)
}

// is reports whether a milestone or request names the boot that the record is about now.
func is(b state.Boot, boot string, epoch uint64) bool { return b.Epoch == epoch && BootOf(b) == boot }

// Reached implements pxe.Milestones. What it returns nil for is in the store, and the workflow has
// been told; a machine that hears nothing asks again.
func (p *Plane) Reached(ctx context.Context, m pxe.Milestone) error {
	rec, rev, err := state.Load[state.Boot](ctx, p.Store, state.BootsAt+m.Machine)
	if err != nil {
		return err
	}
	if rev == 0 || !is(rec, m.Run, m.Epoch) {
		return &fault.Error{Kind: fault.Stale, Where: "machine " + m.Machine, What: "milestone " + m.Kind.String(),
			Evidence: "its boot is over"}
	}
	switch m.Kind {
	case pxe.KindAlarm:
		p.Log.Warn("boot token misused", "machine", m.Machine, "run", m.Run, "from", m.From, "detail", m.Detail)
		return nil
	case pxe.KindReboot:
		return p.reboot(ctx, rec, rev)
	case pxe.KindPhoneHome:
		if err := p.phoneHome(ctx, m); err != nil {
			return err
		}
	case pxe.KindHealthy, pxe.KindFailed:
		if rec.Nonce != m.Nonce && !(m.Kind == pxe.KindFailed && rec.Nonce == "") {
			return conflict(m)
		}
	case pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel:
	}
	name := rec.Workload
	if name == "" {
		name = "host-" + rec.Machine // or the one whose disk is copied
	}
	if m.Kind != pxe.KindHealthy { // the workflow writes that itself, after it has checked
		if _, err := state.Update(ctx, p.Store, state.ResultsAt+rec.Run+"/"+name, func(r *state.Result) error {
			if r.Times == nil {
				r.Times = map[string]time.Time{}
			}
			if r.Times[m.Kind.String()].IsZero() {
				r.Times[m.Kind.String()] = m.At
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return p.Signals.Reached(ctx, rec.Workflow, workflows.Milestone{Kind: m.Kind.String(), At: m.At, Epoch: m.Epoch,
		AgentURL: m.AgentURL, Detail: m.Detail})
}

func (p *Plane) phoneHome(ctx context.Context, m pxe.Milestone) error {
	_, err := state.Update(ctx, p.Store, state.BootsAt+m.Machine, func(b *state.Boot) error {
		switch {
		case !is(*b, m.Run, m.Epoch):
			return &fault.Error{Kind: fault.Stale, Where: "machine " + m.Machine, What: "phone-home", Evidence: "its boot is over"}
		case b.Held:
			return &fault.Error{Kind: fault.Conflict, Where: "machine " + m.Machine, What: "phone-home", Evidence: "it is held and was given nothing to boot"}
		case b.Nonce == "":
			at := m.At
			b.Nonce, b.PhonedAt = m.Nonce, &at
		case b.Nonce != m.Nonce:
			return conflict(m)
		}
		return nil
	})
	return err
}

func conflict(m pxe.Milestone) error {
	return &fault.Error{Kind: fault.Conflict, Where: "machine " + m.Machine, What: m.Kind.String(),
		Evidence: "its token has been used by another"}
}

// Join implements pxe.Joiner: it signs the key of a machine that the store says is becoming a Host.
func (p *Plane) Join(ctx context.Context, j pxe.Join) (chain, ca []byte, err error) {
	rec, rev, err := state.Load[state.Boot](ctx, p.Store, state.BootsAt+j.Machine)
	if err != nil {
		return nil, nil, err
	}
	if rev == 0 || !is(rec, j.Run, j.Epoch) || rec.Workload != "" || rec.Capture {
		return nil, nil, &fault.Error{Kind: fault.Unsafe, Where: "machine " + j.Machine, What: "join",
			Evidence: "no run is making it a host"}
	}
	csr := j.CSR
	if block, _ := pem.Decode(csr); block == nil {
		csr = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	}
	cert, err := p.CA.SignAgent(csr, rec.Machine, rec.Epoch)
	return cert, p.CA.PEM(), err
}
