package machine

import (
	"fmt"
	"strings"

	"rerack.dev/rerack/internal/kvmprobe"
)

// firstFD is the number that a process's first inherited file has, after its standard ones.
const firstFD = 3

// args is QEMU's command line for one life on an accelerator. Everything it has, it has been given: no
// default devices.
func (c *Config) args(b Boot, accelerator string) []string {
	cpu := "max"
	switch {
	case accelerator == kvmprobe.KVM:
		cpu = "host"
	case c.CPUs > 1: // a host, whose machines would wait for each other on one thread
		accelerator += ",thread=multi,tb-size=256"
	default:
		accelerator += ",thread=single,tb-size=32"
	}
	board := "pc,graphics=off" // SeaBIOS speaks on the serial console
	switch {
	case c.Arch == ARM64:
		board = "virt"
		if cpu == "max" {
			cpu = "cortex-a57" // emulating the newest one's pointer authentication costs half the speed
		}
	case c.SecureBoot:
		board = "q35,smm=on"
	case c.Firmware == UEFI:
		board = "q35"
	}
	a := []string{"-name", c.Name, "-M", board, "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-accel", accelerator, "-cpu", cpu,
		"-m", fmt.Sprint(c.MemoryMiB), "-smp", fmt.Sprint(c.CPUs), "-serial", "stdio", "-monitor", "none",
		"-smbios", "type=1,serial=" + c.Serial}
	if c.UUID != "" {
		a = append(a, "-uuid", c.UUID)
	}
	if c.Firmware == UEFI {
		if c.SecureBoot && c.Arch == X86 {
			// Only code in system management mode may write the variables.
			a = append(a, "-global", "driver=cfi.pflash01,property=secure,value=on")
		}
		a = append(a, "-drive", "if=pflash,format=raw,readonly=on,file="+comma(c.Code), "-drive", "if=pflash,format=raw,file="+comma(c.vars()))
		// OVMF tries PXE and HTTP over IPv4 and IPv6 one after the other, minutes each: leave it the one.
		a = append(a, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
		if b.Device == HTTP {
			a = append(a, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
		}
	}
	for i, n := range c.NICs {
		dev := fmt.Sprintf("virtio-net-pci,netdev=n%d,mac=%s", i, n.MAC)
		if c.Firmware == UEFI {
			dev += ",romfile=" // OVMF has a driver of its own and so needs a boot loader, as real firmware does
		}
		a = append(a, "-netdev", fmt.Sprintf("stream,id=n%d,server=off,addr.type=fd,addr.str=%d", i, firstFD+i), "-device", dev)
	}
	for i, d := range c.Disks {
		a = append(a, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s", i, comma(d)), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=%s", i, DiskSerial(c.Name, i)))
	}
	if b.Kernel != nil {
		return append(a, "-kernel", b.Kernel.Path, "-initrd", b.Kernel.Initrd, "-append", b.Kernel.Cmdline)
	}
	if c.Arch == ARM64 { // whose firmware tries its disks and then its network cards
		return a
	}
	order := "n"
	if b.Device == Disk {
		order = "c"
	}
	return append(a, "-boot", "order="+order)
}

// DiskSerial is the serial number of a machine's disk, by its place in Config.Disks. A virtio disk has no
// room for more than 20 bytes (virtio 1.2, section 5.2.6.1).
func DiskSerial(name string, i int) string {
	s := fmt.Sprintf("d%d-%s", i, name)
	return s[:min(len(s), 20)]
}

// comma writes a path so that QEMU does not take a comma in it for the end.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }
