package qemu

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

const (
	firstFD = 3 // of a process's inherited files, after its standard ones
	// The most that the boards are made for. A disk beyond the board's own controller is on a SCSI one, for
	// which its system needs a driver.
	maxCPUs    = 255
	ideOfBIOS  = 4 // two channels of two
	sataOfUEFI = 6
	// console is how much of its serial console is kept of each machine, in bytes, a power of two.
	console = 64 << 10
)

// supports returns fault.Unsupported for what QEMU does not run on this host.
func (c *Config) supports(s driver.Spec) error {
	arch := map[string]string{"amd64": "x86_64"}[runtime.GOARCH]
	switch {
	case s.Arch != arch:
		return refuse(fault.Unsupported, "it is for "+s.Arch+", and this host runs "+arch)
	case s.CPUs > maxCPUs:
		return refuse(fault.Unsupported, fmt.Sprintf("%d CPUs; the most in one machine are %d", s.CPUs, maxCPUs))
	}
	for _, d := range s.Disks {
		if d.ISCSI == nil {
			return refuse(fault.Unsupported, "volume "+d.Volume+" is on Fibre Channel, and this host reaches iSCSI alone")
		}
	}
	if s.Firmware == "uefi" {
		for _, f := range []string{c.Code, c.Vars} {
			if _, err := os.Stat(f); err != nil {
				return &fault.Error{Kind: fault.Unsupported, Evidence: "this host has no UEFI firmware", Err: err}
			}
		}
	}
	return nil
}

// launch is everything that one QEMU is started with.
type launch struct {
	args  []string
	files []*os.File // inherited, from firstFD on
}

// inherit has QEMU inherit a file and returns its number there.
func (l *launch) inherit(f *os.File) int {
	l.files = append(l.files, f)
	return firstFD + len(l.files) - 1
}

func (l *launch) add(args ...string) { l.args = append(l.args, args...) }

// options writes an option's value in JSON, where no character has a meaning of QEMU's own.
func (l *launch) options(option string, v map[string]any) {
	b, _ := json.Marshal(v) // strings, numbers and booleans
	l.add(option, string(b))
}

// board is the machine without what is plugged in. It starts paused.
func (l *launch) board(c *Config, s driver.Spec, control, serial *os.File) {
	board, cpu, accel := "pc,graphics=off", "max", "tcg,tb-size=64" // SeaBIOS speaks on the serial console
	if s.Firmware == "uefi" {
		board = "q35"
	}
	if c.Accelerator == "kvm" {
		cpu, accel = "host", "kvm"
	}
	l.add("-name", "guest="+s.Name, "-uuid", s.UUID, "-M", board, "-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprint(s.MemoryMiB), "-smp", fmt.Sprint(s.CPUs), "-rtc", "base=utc",
		"-S", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", l.inherit(control)), "-mon", "chardev=qmp,mode=control",
		"-boot", "strict=on")
	if serial != nil {
		l.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", l.inherit(serial)))
	} else {
		l.add("-chardev", fmt.Sprintf("ringbuf,id=console,size=%d", console))
	}
	l.add("-serial", "chardev:console")
}

// firmware gives a UEFI machine its code, which it cannot write, and variables of its own.
func (l *launch) firmware(c *Config, s driver.Spec) error {
	if s.Firmware != "uefi" {
		return nil
	}
	vars, err := os.ReadFile(c.Vars)
	if err != nil {
		return fault.Wrap(err, "read UEFI variables", c.Vars)
	}
	if err := os.WriteFile(c.varsOf(s.Name), vars, 0o600); err != nil {
		return fault.Wrap(err, "write UEFI variables", c.Dir)
	}
	l.add("-drive", "if=pflash,format=raw,readonly=on,file="+comma(c.Code), "-drive", "if=pflash,format=raw,file="+comma(c.varsOf(s.Name)))
	return nil
}

// varsOf is where the UEFI variables of a running machine are.
func (c *Config) varsOf(name string) string { return filepath.Join(c.Dir, name+".vars") }

// disks gives the machine its volumes, in their order. The board's own controller has a driver in every
// system, also in one that was installed on other hardware; but firmware reads from the older of them sector by
// sector, each over the network.
func (l *launch) disks(s driver.Spec) error {
	own, scsi := ideOfBIOS, false
	if s.Firmware == "uefi" {
		own = sataOfUEFI
	}
	for i, d := range s.Disks {
		node, err := l.iscsi(i, d.ISCSI)
		if err != nil {
			return err
		}
		l.options("-blockdev", node)
		dev := map[string]any{"driver": "ide-hd", "drive": node["node-name"], "id": fmt.Sprintf("disk%d", i)}
		switch {
		case s.Virtio:
			dev["driver"] = "virtio-blk-pci"
		case i >= own:
			if !scsi {
				scsi = true
				l.options("-device", map[string]any{"driver": "virtio-scsi-pci", "id": "scsi"})
			}
			dev["driver"], dev["bus"] = "scsi-hd", "scsi.0"
		case s.Firmware == "uefi":
			dev["bus"] = fmt.Sprintf("ide.%d", i)
		default:
			dev["bus"], dev["unit"] = fmt.Sprintf("ide.%d", i/2), i%2
		}
		if d.Boot {
			dev["bootindex"] = 0
		}
		l.options("-device", dev)
	}
	return nil
}

// iscsi is QEMU's block driver for one volume. A secret goes through a pipe: it is in no argument, which
// every process of the host could read, and in no file.
func (l *launch) iscsi(i int, t *driver.ISCSI) (map[string]any, error) {
	host, port, err := net.SplitHostPort(t.Portal)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "portal", Evidence: t.Portal, Err: err}
	}
	node := map[string]any{"driver": "iscsi", "node-name": fmt.Sprintf("volume%d", i), "transport": "tcp",
		"portal": net.JoinHostPort(host, port), "target": t.Target, "lun": t.LUN}
	if t.Initiator != "" {
		node["initiator-name"] = t.Initiator
	}
	if t.CHAP != nil && t.CHAP.User != "" {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fault.Wrap(err, "hand over a secret", "volume of "+t.Target)
		}
		fd := l.inherit(r)
		_, err = w.WriteString(string(t.CHAP.Secret)) // shorter than a pipe is deep
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, fault.Wrap(err, "hand over a secret", "volume of "+t.Target)
		}
		l.options("-object", map[string]any{"qom-type": "secret", "id": fmt.Sprintf("chap%d", i), "file": fmt.Sprintf("/proc/self/fd/%d", fd)})
		node["user"], node["password-secret"] = t.CHAP.User, fmt.Sprintf("chap%d", i)
	}
	return node, nil
}

// nic gives the machine a network card, from whose ROM it boots when it has no disk to boot from.
func (l *launch) nic(i int, mac string, p Port) {
	l.add("-netdev", fmt.Sprintf("%s,id=net%d", p.Netdev(l.inherit(p.File)), i))
	l.options("-device", map[string]any{"driver": "virtio-net-pci", "netdev": fmt.Sprintf("net%d", i), "mac": mac, "bootindex": 1 + i})
}

// comma writes a path so that QEMU does not take a comma in it for the end.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }
