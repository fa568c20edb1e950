// Package ipmisim gives a machine a BMC that somebody else wrote: OpenIPMI's ipmi_sim, which speaks IPMI 2.0 on
// a UDP socket of loopback (cipher suites 0 to 3 and 6; ask for 3). It calls a script for the machine's power and
// boot device, which passes what is set through a pipe and reads what is true from a file. The script returns
// at once: ipmi_sim repeats slow calls.
//
// ipmi_sim drops the valid, EFI and persistent bits of the boot flags, so that they read back as if they had been
// reverted, and it knows no power restore policy.
package ipmisim

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"rerack.dev/rerack/internal/child"
	"rerack.dev/rerack/internal/fault"
)

// BootDevice is what ipmi_sim makes of the boot flags.
type BootDevice string

const (
	BootNone BootDevice = "none"    // no override
	BootPXE  BootDevice = "pxe"     // the network
	BootDisk BootDevice = "default" // the first disk
)

// Backend is the machine. Its methods are called one after the other and must not take long.
type Backend interface {
	On() bool // whether it truly is
	SetPower(on bool)
	ShutDown() // asks the system in it
	Reset()
	SetBoot(BootDevice)
}

// Config of a BMC. All but Logger is required.
type Config struct {
	Name           string
	Dir            string // gets its configuration, state and pipe
	Listen         netip.AddrPort
	User, Password string // letters, digits and - . _; at most 16 characters each, of a longer password ipmi_sim forgets the rest
	UUID           string
	Backend        Backend
	Logger         *slog.Logger
}

var (
	nameForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	loginForm = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	pathForm  = regexp.MustCompile(`^[A-Za-z0-9/._-]{1,200}$`) // in a line of a configuration file, and in one of a shell
	uuidForm  = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	bad := func(key string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "ipmi_sim of " + c.Name, What: key, Evidence: "missing or not of its form"}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case !nameForm.MatchString(c.Name):
		return bad("Name")
	case !filepath.IsAbs(c.Dir) || !pathForm.MatchString(c.Dir):
		return bad("Dir")
	case !c.Listen.Addr().IsLoopback() || c.Listen.Port() == 0:
		return bad("Listen")
	case !loginForm.MatchString(c.User) || len(c.User) > 16:
		return bad("User")
	case !loginForm.MatchString(c.Password) || len(c.Password) > 16:
		return bad("Password")
	case !uuidForm.MatchString(c.UUID):
		return bad("UUID")
	case c.Backend == nil:
		return bad("Backend")
	}
	return nil
}

// BMC is a running ipmi_sim.
type BMC struct {
	cfg   Config
	pipe  *os.File
	heard chan struct{} // closed when nothing reads the pipe any more

	mu     sync.Mutex // held while it starts or stops
	kill   context.CancelFunc
	ended  <-chan error
	closed bool

	state sync.Mutex // held while the state is written
}

// Start starts ipmi_sim. It answers soon after.
func Start(c Config) (*BMC, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		return nil, &fault.Error{Kind: fault.Unsupported, Where: "ipmi_sim of " + c.Name, What: "find it", Err: err, Next: "install the package openipmi"}
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make directory", c.Dir)
	}
	b := &BMC{cfg: c, heard: make(chan struct{})}
	for name, f := range b.files() {
		if err := os.WriteFile(b.path(name), f.text, f.mode); err != nil {
			return nil, fault.Wrap(err, "write", b.path(name))
		}
	}
	if err := b.Refresh(); err != nil {
		return nil, err
	}
	var err error
	if b.pipe, err = openPipe(b.path("pipe")); err != nil {
		return nil, fault.Wrap(err, "make a pipe", c.Dir)
	}
	go b.listen()
	if err := b.Revive(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

//go:embed chassis.sh
var chassis []byte

type file struct {
	text []byte
	mode os.FileMode
}

func (b *BMC) files() map[string]file {
	c := b.cfg
	return map[string]file{
		"chassis.sh": {chassis, 0o700},
		"boot":       {[]byte(BootNone), 0o600},
		"sim.emu":    {[]byte("mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"), 0o600},
		"lan.conf": {fmt.Appendf(nil, `name "%s"
set_working_mc 0x20
  startlan 1
    addr %s %d
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid %s
  endlan
  chassis_control "%s"
  user 2 true "%s" "%s" admin 10 none md2 md5 straight
`, c.Name, c.Listen.Addr(), c.Listen.Port(), guid(c.UUID), b.path("chassis.sh"), c.User, c.Password), 0o600},
	}
}

// guid is a UUID in the order of SMBIOS, whose first three fields are little-endian, as most BMCs send it.
func guid(uuid string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil {
		return ""
	}
	for _, field := range [][]byte{b[0:4], b[4:6], b[6:8]} {
		slices.Reverse(field)
	}
	return hex.EncodeToString(b)
}

// Addr is where it listens.
func (b *BMC) Addr() string { return b.cfg.Listen.String() }

// Revive starts it again after Kill. It does nothing when it runs.
func (b *BMC) Revive() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.kill != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ipmi_sim", "-n", "-c", b.path("lan.conf"), "-f", b.path("sim.emu"), "-s", b.cfg.Dir)
	cmd.WaitDelay = killed
	_, err := cmd.StdinPipe() // it ends when its input does
	if err == nil {
		b.ended, err = child.Start(cmd, nil)
	}
	if err != nil {
		cancel()
		return fault.Wrap(err, "start ipmi_sim", "machine "+b.cfg.Name)
	}
	b.kill = cancel
	return nil
}

// killed is how long it may take to be gone.
const killed = 10 * time.Second

// Kill ends it as the loss of mains does.
func (b *BMC) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kill != nil {
		b.kill()
		<-b.ended
		b.kill = nil
	}
}

// Refresh tells it whether the machine is on. Call it when that changes by itself.
func (b *BMC) Refresh() error {
	b.state.Lock()
	defer b.state.Unlock()
	power := "0"
	if b.cfg.Backend.On() {
		power = "1"
	}
	return b.put("power", power)
}

// put replaces a file of the script's at once.
func (b *BMC) put(name, value string) error {
	next := b.path(name + ".new")
	return fault.Wrap(errors.Join(os.WriteFile(next, []byte(value), 0o600), os.Rename(next, b.path(name))), "write", b.path(name))
}

// Close ends it and waits until nothing is left of it but the files in Dir.
func (b *BMC) Close() error {
	b.Kill()
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	if b.pipe == nil {
		return nil
	}
	err := b.pipe.Close()
	<-b.heard
	b.pipe = nil
	return errors.Join(err, os.Remove(b.path("pipe")))
}

// listen does what the script is told to. A line is "set NAME VALUE".
func (b *BMC) listen() {
	defer close(b.heard)
	var rest []byte
	buf := make([]byte, 4096)
	for {
		n, err := b.pipe.Read(buf)
		if err != nil {
			return
		}
		rest = append(rest, buf[:n]...)
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if !whole {
				break
			}
			rest = after
			b.do(string(line))
		}
		if len(rest) > len(buf) {
			rest = nil // no line of ours is as long
		}
	}
}

func (b *BMC) do(line string) {
	m := b.cfg.Backend
	name, value, _ := strings.Cut(line, " ")
	var err error
	switch name {
	case "power":
		m.SetPower(value == "1")
	case "shutdown":
		m.ShutDown()
	case "reset":
		m.Reset()
	case "boot":
		m.SetBoot(BootDevice(value))
		err = b.put("boot", value)
	default:
		b.cfg.Logger.Warn("ipmi_sim sets what no machine has", "machine", b.cfg.Name, "line", line)
	}
	if err = errors.Join(err, b.Refresh()); err != nil {
		b.cfg.Logger.Error("state of a BMC not written", "machine", b.cfg.Name, "err", err)
	}
}

func (b *BMC) path(name string) string { return filepath.Join(b.cfg.Dir, name) }
