package lab

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/qemu/ipmisim"
	qemu "rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/world"
)

// machine is one server of the lab. While it is off it is this struct and nothing else; while it is on,
// one goroutine lives its life.
type machine struct {
	lab      *Lab
	name     string
	spec     topology.MachineSpec
	identity driver.Inventory
	bmc      *bmcsim.BMC  // nil: the machine has an ipmi_sim
	ipmi     *ipmisim.BMC // nil: the machine has a simulated BMC
	log      *slog.Logger

	mu      sync.Mutex
	boot    driver.BootOverride
	disk    *install // what its own disk boots; nil is an empty disk
	faults  machineFaults
	bmcDrop bool            // drop asked for by a fault, beside what the world says
	host    *hypersim.Host  // while the machine runs a hypervisor
	hosting hypersim.Faults // of the hypervisor, whether it runs already or not
	phase   string
	life    world.Life
	cancel  context.CancelFunc // ends the present life
	done    chan struct{}      // closed when its goroutine is gone
	real    *qemu.Machine      // nil: the machine is simulated
	heardIn *box               // the life that the real machine's console speaks of
}

// install is an operating system on a machine's own disk: the workload that it was when it was
// installed, with the epoch of that time. It knows nothing of what happened since.
type install struct {
	workload string
	epoch    uint64
	running  bool // it is up already when the lab starts: no POST
}

// machineFaults are what is wrong with a machine.
type machineFaults struct {
	noBoot      bool // hangs in POST
	noPhoneHome bool // boots and never reports
	panics      bool // the kernel dies as soon as it runs
	sick        bool // reports, and answers health checks with 503
	noDisk      bool // its workload never gets its volumes
	slow        time.Duration
}

// follow starts or ends the machine's life as the world's power says. It is called after every change
// and may be called at any time.
func (m *machine) follow() {
	m.followBMC()
	m.mu.Lock()
	defer m.mu.Unlock()
	life, on := m.lab.world.Life(m.name)
	if m.cancel != nil && (!on || life != m.life) {
		m.cancel()
		m.cancel = nil
		m.phase = ""
	}
	if !on || m.cancel != nil || m.lab.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(m.lab.ctx)
	before := m.done
	m.life, m.cancel, m.done = life, cancel, make(chan struct{})
	done := m.done
	m.lab.wg.Go(func() {
		defer close(done)
		defer cancel()
		if before != nil {
			<-before // the former life lets go of its sockets first
		}
		m.run(ctx, life)
	})
}

func (m *machine) run(ctx context.Context, life world.Life) {
	b := m.newBox(life)
	if m.real != nil {
		m.runReal(ctx, b)
		return
	}
	if m.warm() {
		m.runDisk(ctx, b)
		return
	}
	b.enter("post")
	if m.fault().noBoot {
		<-ctx.Done()
		return
	}
	if !pause(ctx, m.lab.cfg.Post+m.fault().slow) {
		return
	}
	o := m.takeBoot()
	b.firmware = firmwareArch(b.arch, string(o.Mode), o.Device == driver.BootHTTP)
	if o.Device == driver.BootDisk {
		m.runDisk(ctx, b)
		return
	}
	b.netBoot(ctx)
}

// takeBoot takes the pending override, or the machine's own order: its disk, and the network when that
// is empty.
func (m *machine) takeBoot() driver.BootOverride {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.boot
	if o.Once {
		m.boot = driver.BootOverride{Device: driver.BootDefault}
	}
	if o.Device == driver.BootDefault || o.Device == "" {
		o.Device = driver.BootPXE
		if m.disk != nil {
			o.Device = driver.BootDisk
		}
	}
	return o
}

func (m *machine) installed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk != nil
}

// warm says whether the machine's own system is up already: the lab starts in the middle of its life.
func (m *machine) warm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk != nil && m.disk.running
}

// takeInstall returns what is on the machine's own disk, which from now on starts cold; nil is nothing.
func (m *machine) takeInstall() *install {
	m.mu.Lock()
	defer m.mu.Unlock()
	on := m.disk
	if on != nil {
		own := *on
		own.running = false
		m.disk = &own
	}
	return on
}

// runDisk runs what was installed on the machine's own disk.
func (m *machine) runDisk(ctx context.Context, b *box) {
	on := m.takeInstall()
	if on == nil {
		b.enter("no boot device")
		<-ctx.Done()
		return
	}
	b.runWorkload(ctx, m.lab.installed(on))
}

func (m *machine) fault() machineFaults {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faults
}

func (m *machine) setPhase(life world.Life, phase string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil && m.life == life {
		m.phase = phase
	}
}

// pause waits for d and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff is the pause before the next of several tries: it doubles up to a limit.
type backoff struct{ next, most time.Duration }

func (b *backoff) wait(ctx context.Context) bool {
	d := b.next
	b.next = min(2*b.next, b.most)
	return pause(ctx, d)
}

func retry() *backoff { return &backoff{50 * time.Millisecond, 2 * time.Second} }
