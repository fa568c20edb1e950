package lab

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/test/world"
)

// Lab is one running data centre.
type Lab struct {
	cfg     Config
	log     *slog.Logger
	topo    *topology.Topology // with the addresses of the simulators
	world   *world.World
	ca      *bmcsim.CA
	secrets secrets
	plan    plan
	catalog map[pxe.Digest]string // what the generated boot files are
	relays  map[string]netip.Addr // by switch
	boot    atomic.Pointer[netip.AddrPort]
	tftp    atomic.Pointer[netip.AddrPort]
	real    *reality // nil: all machines are simulated

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // lives of machines
	stop   func()         // no more events of the world

	machines map[string]*machine
	farm     *bmcsim.Farm
	proxy    *probeProxy
	devices
	closers []func() error // in the order of starting
	control sync.WaitGroup
	once    sync.Once
	closed  error
}

// Start builds the data centre and puts it to work: every workload with a home runs there at epoch 1,
// all other machines are off. ctx bounds the start; the lab then runs until Close.
func Start(ctx context.Context, cfg Config) (*Lab, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, log: cfg.Logger, topo: cfg.Topology.Clone(), machines: map[string]*machine{}}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.SetBootServer(cfg.BootServer)
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(l.cfg.Dir, 0o700); err != nil {
		return fault.Wrap(err, "make the lab's directory", l.cfg.Dir)
	}
	useLoopback(l.topo)
	// The world keeps a copy of its own: what it needs of the topology does not change any more.
	if l.world, err = world.New(world.Config{Topology: l.topo.Clone(), Now: time.Now}); err != nil {
		return err
	}
	if l.ca, err = bmcsim.NewCA(); err != nil {
		return fault.Wrap(err, "make a CA", "lab")
	}
	if err := os.WriteFile(filepath.Join(l.cfg.Dir, "ca.pem"), []byte(l.ca.PEM()), 0o600); err != nil {
		return fault.Wrap(err, "write CA", "lab")
	}
	l.secrets = makeSecrets(l.topo)
	if err := l.secrets.write(l.cfg.Dir); err != nil {
		return err
	}
	if err := l.buildSystem(); err != nil {
		return err
	}
	if err := l.makeImages(ctx); err != nil {
		return err
	}
	if err := l.makeLoaders(); err != nil {
		return err
	}
	l.plan, l.relays = planOf(l.topo), relayAddresses(l.topo)
	for _, name := range l.topo.Names(topology.KindMachine) {
		l.machines[name] = &machine{lab: l, name: name, spec: l.topo.Machines[name].Spec, identity: identityOf(name, l.topo),
			log: l.log.With("machine", name), disk: l.plan.installs[name]}
	}
	for _, f := range []func(context.Context) error{l.startSwitches, l.startFabrics, l.startArrays,
		func(context.Context) error { return l.startBMCs() }, l.startProxy, l.startReal} {
		if err := f(ctx); err != nil {
			return err
		}
	}
	l.allowForPost()
	if err := l.writeTopology(); err != nil {
		return err
	}
	l.stop = l.world.Watch(l.onEvent)
	for _, name := range l.topo.Names(topology.KindSwitch) {
		l.followSwitch(name, "") // carriers between switches make no event of their own
	}
	for _, name := range l.topo.Names(topology.KindMachine) {
		if l.plan.installs[name] == nil {
			continue
		}
		if err := l.world.Press(name, true, "lab"); err != nil {
			return err
		}
	}
	return nil
}

// onEvent lets everything follow what has changed in the world.
func (l *Lab) onEvent(e world.Event) {
	switch e.Kind {
	case world.EventMachine:
		if m := l.machines[e.Name]; m != nil {
			m.follow()
		}
	case world.EventSwitch, world.EventPort:
		l.followSwitch(e.Name, e.Port)
	case world.EventFabric:
		l.followFabric(e.Name)
	case world.EventArray:
		l.followArray(e.Name)
	case world.EventZone, world.EventMask, world.EventRun: // nothing of ours depends on them
	case world.EventViolation:
		l.log.Error("a safety rule is broken", "subject", e.Name)
	}
	switch e.Kind {
	case world.EventMachine, world.EventSwitch, world.EventPort:
		l.followWires()
	}
}

// Topology is the topology with the addresses, fingerprints and digests of this lab.
func (l *Lab) Topology() *topology.Topology { return l.topo.Clone() }

// World is the truth behind the simulators.
func (l *Lab) World() *world.World { return l.world }

// SetBootServer names the DHCP server to which the relays send.
func (l *Lab) SetBootServer(dhcp netip.AddrPort) { l.boot.Store(&dhcp) }

// SetTFTPServer names the TFTP server, which DHCP can only name with the port 69 of everybody's. Until
// it is called, the network cards' ROM is iPXE and loads nothing by TFTP.
func (l *Lab) SetTFTPServer(tftp netip.AddrPort) { l.tftp.Store(&tftp) }

// Close ends everything and waits for it.
func (l *Lab) Close() error {
	l.once.Do(func() {
		l.cancel()
		if l.stop != nil {
			l.stop()
		}
		l.wg.Wait()
		var errs []error
		for i := len(l.closers) - 1; i >= 0; i-- {
			errs = append(errs, l.closers[i]())
		}
		l.control.Wait()
		l.closed = errors.Join(errs...)
	})
	return l.closed
}

func (l *Lab) onClose(f func() error) { l.closers = append(l.closers, f) }

// address is where a device that the topology declares at that address listens: there, when it is a
// loopback address with a port, else on a free port.
func (l *Lab) address(declared string) string {
	const free = "127.0.0.1:0"
	if l.cfg.FreePorts {
		return free
	}
	for _, scheme := range []string{"https://", "http://", "tcp:", "ssl:"} {
		declared = strings.TrimPrefix(declared, scheme)
	}
	if a, err := netip.ParseAddrPort(strings.TrimSuffix(declared, "/")); err == nil && a.Addr().IsLoopback() && a.Port() != 0 {
		return a.String()
	}
	return free
}

func (l *Lab) listen(ctx context.Context, declared string) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", l.address(declared))
	return ln, fault.Wrap(err, "listen", declared)
}

// startProxy starts the way in to the workloads' own networks and names it in every site.
func (l *Lab) startProxy(ctx context.Context) error {
	declared := ""
	for _, name := range l.topo.Names(topology.KindSite) {
		if p := l.topo.Sites[name].Spec.ProbeProxy; declared == "" {
			declared = strings.TrimPrefix(p, "socks5://")
		}
	}
	ln, err := l.listen(ctx, declared)
	if err != nil {
		return err
	}
	l.proxy = startProbeProxy(ln, l.serviceAt, l.log)
	l.onClose(l.proxy.close)
	for name, s := range l.topo.Sites {
		s.Spec.ProbeProxy = "socks5://" + ln.Addr().String()
		if l.real != nil { // agents of simulated hosts are on loopback
			s.Spec.AgentProxy = s.Spec.ProbeProxy
		}
		l.topo.Sites[name] = s
	}
	return nil
}

// serviceAt says what answers at an address inside the site, as far as frames pass.
func (l *Lab) serviceAt(at netip.AddrPort) (service, error) {
	owner, ok := l.plan.addresses[at.Addr()]
	if s, real := l.agentAt(at); !ok && real {
		return s, nil
	}
	if !ok {
		return service{}, &fault.Error{Kind: fault.NotFound, Where: at.String(), What: "find who answers"}
	}
	for _, r := range l.world.Holders(owner.workload) {
		if !l.world.RunReach(r, owner.vlan) {
			continue
		}
		if !owner.listens(at.Port()) {
			return service{}, errRefused
		}
		if l.machines[r.Machine].real != nil {
			return l.realService(r, owner.vlan, at), nil
		}
		return service{Workload: r.Workload, Epoch: r.Epoch, Machine: r.Machine, sick: l.machines[r.Machine].fault().sick}, nil
	}
	return service{}, &fault.Error{Kind: fault.Unreachable, Where: at.String(), What: "reach " + owner.workload}
}
