package machine

import (
	"fmt"
	"strings"
)

// firstFD is the number that a process's first inherited file has, after its standard ones.
const firstFD = 3

// args is QEMU's command line for one life. Everything it has, it has been given: no default devices.
func (c *Config) args(b Boot) []string {
	board := "pc,graphics=off" // SeaBIOS speaks on the serial console
	if c.Firmware == UEFI {
		board = "q35"
	}
	a := []string{"-name", c.Name, "-M", board, "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		// Emulated, not virtual: a /dev/kvm that opens may still hang every guest.
		"-accel", "tcg,thread=single,tb-size=32", "-cpu", "max",
		"-m", fmt.Sprint(c.MemoryMiB), "-smp", fmt.Sprint(c.CPUs), "-serial", "stdio", "-monitor", "none",
		"-smbios", "type=1,serial=" + c.Serial}
	if c.UUID != "" {
		a = append(a, "-uuid", c.UUID)
	}
	if c.Firmware == UEFI {
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
		a = append(a, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s", i, comma(d)), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	if b.Kernel != nil {
		return append(a, "-kernel", b.Kernel.Path, "-initrd", b.Kernel.Initrd, "-append", b.Kernel.Cmdline)
	}
	order := "n"
	if b.Device == Disk {
		order = "c"
	}
	return append(a, "-boot", "order="+order)
}

// comma writes a path so that QEMU does not take a comma in it for the end.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }
