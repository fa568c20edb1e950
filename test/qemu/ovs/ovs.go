// Package ovs runs a real Open vSwitch as one switch of a data centre: a database server and a switch daemon
// with the datapath in user space, in a network namespace of its own. Its ports are TAP devices; what is
// plugged into one exchanges frames over a stream, as with a port of package vswitch. The database listens
// on loopback for the product's driver.
//
// It needs root and Debian's package openvswitch-switch, and no kernel module but tun. Nothing outlives the
// process that started it: the daemons die with it, and the namespace with its last user.
package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// DefaultSchema is where Debian has the schema of the database.
const DefaultSchema = "/usr/share/openvswitch/vswitch.ovsschema"

// PortConfig is a port as it is when the switch first starts. Later it is what the database says.
type PortConfig struct {
	Name        string // of a network device: at most 15 characters, no slash
	Untagged    int    // 0: none
	Tagged      []int  // with neither, the port carries every VLAN
	ExternalIDs map[string]string
}

// Config of a Switch. Name, Dir, Bridge and Listen are required.
type Config struct {
	Name   string
	Dir    string // gets the database, logs and sockets; 80 characters at most, for the sockets' sake
	Bridge string
	Listen netip.AddrPort // loopback address of the database
	Ports  []PortConfig
	Schema string // default DefaultSchema
	Logger *slog.Logger
}

// deviceForm is what Linux takes for a device and ovs-vsctl for a word of its own.
var deviceForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,14}$`)

var valueForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,127}$`)

const maxDir = 80

// Validate names the first key that is wrong and fills in the defaults.
func (c *Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "switch " + c.Name, What: key, Evidence: why}
	}
	if c.Schema == "" {
		c.Schema = DefaultSchema
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Name == "":
		return bad("Name", "missing")
	case c.Dir == "" || len(c.Dir) > maxDir || strings.ContainsAny(c.Dir, ":,"):
		return bad("Dir", fmt.Sprintf("%q: want at most %d characters, none of them a colon or a comma", c.Dir, maxDir))
	case !deviceForm.MatchString(c.Bridge):
		return bad("Bridge", fmt.Sprintf("%.80q is no name of a device", c.Bridge))
	case !c.Listen.IsValid() || !c.Listen.Addr().IsLoopback() || c.Listen.Port() == 0:
		return bad("Listen", c.Listen.String()+" is no loopback address with a port")
	}
	seen := map[string]bool{c.Bridge: true}
	for i, p := range c.Ports {
		key := fmt.Sprintf("Ports[%d]", i)
		switch {
		case !deviceForm.MatchString(p.Name) || seen[p.Name]:
			return bad(key, fmt.Sprintf("%.80q is no name of a device, or that of two", p.Name))
		case p.Untagged < 0 || p.Untagged > 4095 || slices.ContainsFunc(p.Tagged, func(v int) bool { return v < 1 || v > 4095 }):
			return bad(key, "VLANs are 1 to 4095")
		}
		for k, v := range p.ExternalIDs {
			if !valueForm.MatchString(k) || !valueForm.MatchString(v) {
				return bad(key, fmt.Sprintf("external ID %.80q=%.80q", k, v))
			}
		}
		seen[p.Name] = true
	}
	return nil
}

// Switch is a running switch.
type Switch struct {
	cfg   Config
	space *namespace
	ports map[string]*Port

	mu      sync.Mutex // held while it starts or stops
	daemons []*daemon
	closed  bool
}

// Start makes the namespace and the ports and starts the switch. It returns when the switch does what its
// database says.
func Start(ctx context.Context, c Config) (*Switch, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	for _, tool := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, &fault.Error{Kind: fault.Unsupported, Where: "switch " + c.Name, What: "find Open vSwitch", Err: err, Next: "install the package openvswitch-switch"}
		}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make directory", c.Dir)
	}
	s := &Switch{cfg: c, ports: map[string]*Port{}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Switch) start(ctx context.Context) (err error) {
	if s.space, err = newNamespace(); err != nil {
		return fault.Wrap(err, "make a network namespace", "switch "+s.cfg.Name)
	}
	for _, p := range s.cfg.Ports {
		t, err := s.space.tap(p.Name)
		if err != nil {
			return fault.Wrap(err, "make port "+p.Name, "switch "+s.cfg.Name)
		}
		s.ports[p.Name] = &Port{name: s.cfg.Name + "/" + p.Name, tap: t}
	}
	if err := s.run(ctx, "ovsdb-tool", "create", s.path("conf.db"), s.cfg.Schema); err != nil {
		return err
	}
	return s.revive(ctx, true)
}

// Endpoint is the database's, as the product's driver takes it.
func (s *Switch) Endpoint() string { return "tcp:" + s.cfg.Listen.String() }

// Port is the port of that name, or nil.
func (s *Switch) Port(name string) *Port { return s.ports[name] }

// Kill ends the switch as a power cut does. Its ports stay, and pass nothing.
func (s *Switch) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill()
}

func (s *Switch) kill() {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		s.daemons[i].stop()
	}
	s.daemons = nil
}

// Revive starts it again with what its database had kept. It does nothing when it runs.
func (s *Switch) Revive(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.daemons) > 0 {
		return nil
	}
	return s.revive(ctx, false)
}

// startLimit is for daemons on a busy computer.
const startLimit = 60 * time.Second

func (s *Switch) revive(ctx context.Context, first bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, left := range []string{"db.sock", "db.ctl", "vs.ctl"} {
		if err := os.Remove(s.path(left)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Wrap(err, "remove the socket of a life before", "switch "+s.cfg.Name)
		}
	}
	if err := s.spawn(nil, "ovsdb-server", s.path("conf.db"), "--remote=punix:"+s.path("db.sock"),
		fmt.Sprintf("--remote=ptcp:%d:%s", s.cfg.Listen.Port(), s.cfg.Listen.Addr()), "--unixctl="+s.path("db.ctl")); err != nil {
		return err
	}
	init := []string{"--no-wait", "--", "init"}
	if first {
		init = []string{"--no-wait", "--", "add-br", s.cfg.Bridge, "--", "set", "bridge", s.cfg.Bridge, "datapath_type=netdev"}
		for _, p := range s.cfg.Ports {
			init = append(init, p.add(s.cfg.Bridge)...)
		}
	}
	if err := s.vsctl(ctx, init...); err != nil {
		return err
	}
	if err := s.spawn(s.space, "ovs-vswitchd", "unix:"+s.path("db.sock"), "--disable-system", "--unixctl="+s.path("vs.ctl")); err != nil {
		return err
	}
	// Waits until the daemon has done what the database says.
	return s.vsctl(ctx, "--", "set", "Open_vSwitch", ".", "external_ids:lab="+fmt.Sprint(time.Now().UnixNano()))
}

// add is the command of ovs-vsctl that makes the port.
func (p PortConfig) add(bridge string) []string {
	a := []string{"--", "add-port", bridge, p.Name}
	var set []string
	if p.Untagged != 0 {
		set = append(set, fmt.Sprintf("tag=%d", p.Untagged))
	}
	if len(p.Tagged) > 0 {
		mode := "trunk"
		if p.Untagged != 0 {
			mode = "native-untagged"
		}
		set = append(set, "vlan_mode="+mode, "trunks="+strings.Trim(strings.ReplaceAll(fmt.Sprint(p.Tagged), " ", ","), "[]"))
	}
	for _, k := range slices.Sorted(maps.Keys(p.ExternalIDs)) {
		set = append(set, fmt.Sprintf("external_ids:%s=%q", k, p.ExternalIDs[k]))
	}
	if len(set) == 0 {
		return a
	}
	return append(append(a, "--", "set", "port", p.Name), set...)
}

func (s *Switch) vsctl(ctx context.Context, args ...string) error {
	return s.run(ctx, "ovs-vsctl", append([]string{"--db=unix:" + s.path("db.sock"), "--retry", fmt.Sprintf("--timeout=%d", int(startLimit.Seconds()))}, args...)...)
}

// Close ends the switch and waits until nothing is left of it but what stands in Dir.
func (s *Switch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.kill()
	var errs []error
	for _, p := range s.ports {
		errs = append(errs, p.tap.Close())
	}
	s.ports = nil
	if s.space != nil {
		errs = append(errs, s.space.close())
		s.space = nil
	}
	return errors.Join(errs...)
}

func (s *Switch) path(name string) string { return filepath.Join(s.cfg.Dir, name) }
