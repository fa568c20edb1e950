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
	"strings"
	"sync"
	"time"

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
	// AgentCert and AgentCA are for the agents of hosts.
	AgentCert tls.Certificate
	AgentCA   *x509.CertPool
}

// Gateway holds the open devices.
type Gateway struct {
	cfg Config

	mu   sync.Mutex
	open map[string]opened
}

type opened struct {
	spec   string // what it was opened for
	device io.Closer
}

var _ workflows.Devices = (*Gateway)(nil)

// New returns a gateway that has opened nothing.
func New(c Config) *Gateway { return &Gateway{cfg: c, open: map[string]opened{}} }

// Close frees all sessions.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.cfg.Fleet.Close(ctx)
	for _, o := range g.open {
		err = errors.Join(err, o.device.Close())
	}
	g.open = map[string]opened{}
	return err
}

// kept returns the open device for key, or opens it. When its declaration has changed the old one is
// closed first.
func kept[D io.Closer](g *Gateway, key string, spec any, open func() (D, error)) (D, error) {
	var none D
	b, err := json.Marshal(spec)
	if err != nil {
		return none, &fault.Error{Kind: fault.Internal, Where: key, What: "compare its declaration", Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if o, ok := g.open[key]; ok {
		if d, same := o.device.(D); same && o.spec == string(b) {
			return d, nil
		}
		_ = o.device.Close() // a session of a device that is declared differently now
		delete(g.open, key)
	}
	d, err := open()
	if err != nil {
		return none, err
	}
	g.open[key] = opened{string(b), d}
	return d, nil
}

func undriven(kind, name, driver string) error {
	return &fault.Error{Kind: fault.Unsupported, Where: kind + " " + name, What: "no driver " + driver}
}

// Switch implements workflows.Devices.
func (g *Gateway) Switch(_ context.Context, s topology.Switch) (workflows.Switch, error) {
	return g.fabricSwitch(s)
}

func (g *Gateway) fabricSwitch(s topology.Switch) (fabric.Switch, error) {
	open, ok := g.cfg.Switches[s.Spec.Driver]
	if !ok {
		return nil, undriven("switch", s.Meta.Name, s.Spec.Driver)
	}
	return kept(g, "switch/"+s.Meta.Name, s.Spec, func() (fabric.Switch, error) { return open(s) })
}

// Fabric implements workflows.Devices.
func (g *Gateway) Fabric(_ context.Context, f topology.Fabric) (workflows.Fabric, error) {
	return g.fcFabric(f)
}

func (g *Gateway) fcFabric(f topology.Fabric) (san.Fabric, error) {
	open, ok := g.cfg.Fabrics[f.Spec.Driver]
	if !ok {
		return nil, undriven("fabric", f.Meta.Name, f.Spec.Driver)
	}
	return kept(g, "fabric/"+f.Meta.Name, f.Spec, func() (san.Fabric, error) { return open(f) })
}

// Array implements workflows.Devices.
func (g *Gateway) Array(_ context.Context, a topology.Array) (workflows.Array, error) {
	return g.array(a)
}

func (g *Gateway) array(a topology.Array) (san.Array, error) {
	open, ok := g.cfg.Arrays[a.Spec.Driver]
	if !ok {
		return nil, undriven("array", a.Meta.Name, a.Spec.Driver)
	}
	return kept(g, "array/"+a.Meta.Name, a.Spec, func() (san.Array, error) { return open(a) })
}

// Host implements workflows.Devices.
func (g *Gateway) Host(_ context.Context, machine string, h state.Host) (hypervisordriver.Host, error) {
	return kept(g, "host/"+machine, h, func() (hypervisordriver.Host, error) {
		c, err := agent.Dial(agent.ClientConfig{URL: h.AgentURL, Certificate: g.cfg.AgentCert, CA: g.cfg.AgentCA,
			Machine: machine, Epoch: h.Epoch})
		if err != nil {
			return nil, err
		}
		return g.told(c, machine)
	})
}

// Ports implements monitor.Devices.
func (g *Gateway) Ports(ctx context.Context, s topology.Switch) ([]fabric.Port, error) {
	d, err := g.fabricSwitch(s)
	if err != nil {
		return nil, err
	}
	return d.Ports(ctx)
}

// Sessions implements monitor.Devices.
func (g *Gateway) Sessions(ctx context.Context, a topology.Array) ([]san.Session, error) {
	d, err := g.array(a)
	if err != nil {
		return nil, err
	}
	return d.Sessions(ctx)
}

// Logins implements monitor.Devices.
func (g *Gateway) Logins(ctx context.Context, f topology.Fabric) ([]string, error) {
	d, err := g.fcFabric(f)
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
	return control{g.cfg.Fleet.Client(g.endpoint(m))}, nil
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
