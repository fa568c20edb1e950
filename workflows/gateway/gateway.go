// Package gateway opens the devices that the topology names and keeps them open: one per device, so that
// all writes to it pass one place. Which drivers there are is decided by who builds the gateway.
package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"rerack.dev/rerack/bmc"
	bmcdriver "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/hypervisor/agent"
	hypervisordriver "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/workflows"
)

// Config of a Gateway. The maps are keyed by the driver name of the topology.
type Config struct {
	Fleet    *bmc.Fleet
	DeviceCA string // PEM of the authorities that sign BMC certificates; empty means the system's
	Switches map[string]func(topology.Switch) (fabric.Switch, error)
	Fabrics  map[string]func(topology.Fabric) (san.Fabric, error)
	Arrays   map[string]func(topology.Array) (san.Array, error)
	// CHAP resolves the names of secrets with which hosts log in to targets.
	CHAP func(ctx context.Context, name string) (user, secret string, err error)
	// AgentDial is the way to the agent on a machine; nil is a direct one.
	AgentDial func(machine string) (func(ctx context.Context, network, address string) (net.Conn, error), error)
	// Hypervisors are for machines that run one already, by the machine's name.
	Hypervisors map[topology.HypervisorDriver]OpenHypervisor
	// AgentCert and AgentCA are for the agents of hosts; existing hypervisors know us by AgentCert too.
	AgentCert tls.Certificate
	AgentCA   *x509.CertPool
	Now       func() time.Time // default time.Now
}

// Gateway holds the open devices.
type Gateway struct {
	cfg     Config
	opening singleflight.Group

	mu     sync.Mutex           // held for no I/O: one device that hangs is nothing to the others
	open   map[string][]*opened // by device; several while it is declared in several ways
	closed bool
}

type opened struct {
	spec   string // what it was opened for
	device io.Closer
	used   time.Time
}

// outdated is how long a session of a device that is declared differently by now goes unused before it is
// closed. A run that is under way goes by the declaration it was opened with, beside the monitor, which goes by
// the present one: neither may close what the other is using.
const outdated = 10 * time.Minute

var _ workflows.Devices = (*Gateway)(nil)

// New returns a gateway that has opened nothing.
func New(c Config) *Gateway {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Gateway{cfg: c, open: map[string][]*opened{}}
}

// Close frees all sessions. What is still being opened is closed when it is.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	all := g.open
	g.open, g.closed = map[string][]*opened{}, true
	g.mu.Unlock()
	err := g.cfg.Fleet.Close(ctx)
	for _, list := range all {
		for _, o := range list {
			err = errors.Join(err, o.device.Close())
		}
	}
	return err
}

// kept returns the open device for key, or opens it. Opening goes on when ctx ends first: whoever asks next
// finds it done.
func kept[D io.Closer](ctx context.Context, g *Gateway, key string, spec any, open func() (D, error)) (D, error) {
	var none D
	b, err := json.Marshal(spec)
	if err != nil {
		return none, &fault.Error{Kind: fault.Internal, Where: key, What: "compare its declaration", Err: err}
	}
	d, found := g.find(key, string(b))
	if !found {
		done := g.opening.DoChan(key+"\x00"+string(b), func() (any, error) {
			if d, found := g.find(key, string(b)); found {
				return d, nil
			}
			d, err := open()
			if err != nil {
				return nil, err
			}
			return d, g.keep(key, &opened{string(b), d, g.cfg.Now()})
		})
		select {
		case r := <-done:
			if r.Err != nil {
				return none, r.Err
			}
			d = r.Val.(io.Closer)
		case <-ctx.Done():
			return none, &fault.Error{Kind: fault.Timeout, Where: key, What: "open", Err: ctx.Err()}
		}
	}
	out, ok := d.(D)
	if !ok {
		return none, fault.Newf(fault.Internal, "%s is open as a %T", key, d)
	}
	return out, nil
}

// find returns the open device for key and closes what nobody has used for long that it was opened for before.
func (g *Gateway) find(key, spec string) (d io.Closer, found bool) {
	now := g.cfg.Now()
	var old []*opened
	g.mu.Lock()
	g.open[key] = slices.DeleteFunc(g.open[key], func(o *opened) bool {
		switch {
		case o.spec == spec:
			o.used, d, found = now, o.device, true
		case now.Sub(o.used) >= outdated:
			old = append(old, o)
			return true
		}
		return false
	})
	g.mu.Unlock()
	for _, o := range old {
		_ = o.device.Close() // a session of a device that is declared differently now
	}
	return d, found
}

func (g *Gateway) keep(key string, o *opened) error {
	g.mu.Lock()
	closed := g.closed
	if !closed {
		g.open[key] = append(g.open[key], o)
	}
	g.mu.Unlock()
	if closed {
		_ = o.device.Close() // nobody has used it
		return &fault.Error{Kind: fault.Unreachable, Where: key, What: "open", Evidence: "the gateway is closed"}
	}
	return nil
}

func undriven(kind, name, driver string) error {
	return &fault.Error{Kind: fault.Unsupported, Where: kind + " " + name, What: "no driver " + driver}
}

// Switch implements workflows.Devices.
func (g *Gateway) Switch(ctx context.Context, s topology.Switch) (workflows.Switch, error) {
	return g.fabricSwitch(ctx, s)
}

func (g *Gateway) fabricSwitch(ctx context.Context, s topology.Switch) (fabric.Switch, error) {
	open, ok := g.cfg.Switches[s.Spec.Driver]
	if !ok {
		return nil, undriven("switch", s.Meta.Name, s.Spec.Driver)
	}
	return kept(ctx, g, "switch/"+s.Meta.Name, s.Spec, func() (fabric.Switch, error) { return open(s) })
}

// Fabric implements workflows.Devices.
func (g *Gateway) Fabric(ctx context.Context, f topology.Fabric) (workflows.Fabric, error) {
	return g.fcFabric(ctx, f)
}

func (g *Gateway) fcFabric(ctx context.Context, f topology.Fabric) (san.Fabric, error) {
	open, ok := g.cfg.Fabrics[f.Spec.Driver]
	if !ok {
		return nil, undriven("fabric", f.Meta.Name, f.Spec.Driver)
	}
	return kept(ctx, g, "fabric/"+f.Meta.Name, f.Spec, func() (san.Fabric, error) { return open(f) })
}

// Array implements workflows.Devices.
func (g *Gateway) Array(ctx context.Context, a topology.Array) (workflows.Array, error) {
	return g.array(ctx, a)
}

func (g *Gateway) array(ctx context.Context, a topology.Array) (san.Array, error) {
	open, ok := g.cfg.Arrays[a.Spec.Driver]
	if !ok {
		return nil, undriven("array", a.Meta.Name, a.Spec.Driver)
	}
	return kept(ctx, g, "array/"+a.Meta.Name, a.Spec, func() (san.Array, error) { return open(a) })
}

// Host implements workflows.Devices.
func (g *Gateway) Host(ctx context.Context, machine string, h state.Host) (hypervisordriver.Host, error) {
	if h.Existing != nil {
		return g.existing(ctx, machine, *h.Existing)
	}
	return kept(ctx, g, "host/"+machine, h, func() (hypervisordriver.Host, error) {
		cfg := agent.ClientConfig{URL: h.AgentURL, Certificate: g.cfg.AgentCert, CA: g.cfg.AgentCA, Machine: machine, Epoch: h.Epoch,
			Timeout: hostChanges}
		if g.cfg.AgentDial != nil {
			var err error
			if cfg.Dial, err = g.cfg.AgentDial(machine); err != nil {
				return nil, err
			}
		}
		c, err := agent.Dial(cfg)
		if err != nil {
			return nil, err
		}
		return g.told(c, machine)
	})
}

// Ports implements monitor.Devices.
func (g *Gateway) Ports(ctx context.Context, s topology.Switch) ([]fabric.Port, error) {
	d, err := g.fabricSwitch(ctx, s)
	if err != nil {
		return nil, err
	}
	return d.Ports(ctx)
}

// Sessions implements monitor.Devices.
func (g *Gateway) Sessions(ctx context.Context, a topology.Array) ([]san.Session, error) {
	d, err := g.array(ctx, a)
	if err != nil {
		return nil, err
	}
	return d.Sessions(ctx)
}

// Logins implements monitor.Devices.
func (g *Gateway) Logins(ctx context.Context, f topology.Fabric) ([]string, error) {
	d, err := g.fcFabric(ctx, f)
	if err != nil {
		return nil, err
	}
	return d.Logins(ctx)
}

// PollPower implements monitor.Devices.
func (g *Gateway) PollPower(ctx context.Context, machines []topology.Machine, each func(string, bmcdriver.Reading, error)) {
	eps := make([]bmc.Endpoint, len(machines))
	for i, m := range machines {
		eps[i] = g.endpoint(m)
	}
	g.cfg.Fleet.Poll(ctx, eps, 0, func(r bmc.PollResult) { each(r.Endpoint.Machine, r.Reading, r.Err) })
}

func (g *Gateway) endpoint(m topology.Machine) bmc.Endpoint {
	b := m.Spec.BMC
	ep := bmc.Endpoint{Machine: m.Meta.Name, Address: b.Address, Protocol: bmc.Protocol(b.Protocol), CredentialRef: b.Credentials,
		CA: g.cfg.DeviceCA, Fingerprint: b.Fingerprint, ExpectUUID: m.Spec.UUID, ExpectSerial: m.Spec.Serial}
	if ep.Protocol == "" {
		ep.Protocol = bmc.Auto
	}
	if ep.Protocol == bmc.IPMI {
		ep.Address = strings.TrimPrefix(strings.TrimPrefix(b.Address, "https://"), "ipmi://")
		if b.IPMIAddress != "" {
			ep.Address = b.IPMIAddress
		}
	}
	return ep
}

// Machine implements workflows.Devices.
func (g *Gateway) Machine(_ context.Context, m topology.Machine) (workflows.MachineControl, error) {
	if m.Meta.Name == "" {
		return nil, &fault.Error{Kind: fault.NotFound, What: "the machine is not in the topology any more"}
	}
	c := control{g.cfg.Fleet.Client(g.endpoint(m))}
	if m.Spec.Existing() {
		return witness{c, m.Meta.Name}, nil
	}
	return c, nil
}

// control is a machine's BMC as the workflows need it.
type control struct{ c *bmc.Client }

// pollEvery is how often a power change is looked for while one is awaited.
const pollEvery = 250 * time.Millisecond

func (m control) Power(ctx context.Context) (bmcdriver.Reading, error) { return m.c.Power(ctx) }

func (m control) Off(ctx context.Context, readings int, gap time.Duration) ([]bmcdriver.Reading, error) {
	if _, err := m.c.EnsurePower(ctx, bmcdriver.Off, bmc.PollPolicy{Every: pollEvery}); err != nil {
		return nil, err
	}
	return m.c.ReadOff(ctx, readings, gap)
}

func (m control) On(ctx context.Context, boot bmcdriver.BootOverride, resend time.Duration) error {
	before, err := m.c.Power(ctx)
	if err != nil {
		return err
	}
	// A machine that runs already was turned on by an earlier try of this same step: setting the
	// override again would catch its next boot instead of this one.
	if before.State != bmcdriver.PowerOn {
		if _, _, err := m.c.EnsureBoot(ctx, boot); err != nil {
			return err
		}
	}
	_, err = m.c.EnsurePower(ctx, bmcdriver.On, bmc.PollPolicy{Every: pollEvery, ReSend: resend})
	return err
}

func (m control) StayOff(ctx context.Context) error { return m.c.SetPowerRestore(ctx, true) }
