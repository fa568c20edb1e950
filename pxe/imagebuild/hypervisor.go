package imagebuild

import "strings"

// Where Debian's packages have what QEMU runs with.
const (
	qemuProgram = "/usr/bin/qemu-system-x86_64"
	qemuModules = "/usr/lib/x86_64-linux-gnu/qemu/"
)

// Hypervisor is the recipe of Rerack's own hypervisor: QEMU with its emulation and its iSCSI initiator,
// firmware for guests of both kinds, and drivers for the machines' network cards.
func Hypervisor(k Kernel, root, agent string) Recipe {
	return Recipe{
		Kernel: k, Root: root, Agent: agent, Role: []string{"hypervisor"},
		Always:   []string{"8021q", "bridge", "tun"},
		Hardware: append(networkCards(), "virtio_pci", "kvm_intel", "kvm_amd"),
		Programs: []string{qemuProgram, qemuModules + "accel-tcg-x86_64.so", qemuModules + "block-iscsi.so"},
		Files: []string{
			"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/kvmvapic.bin", "/usr/lib/ipxe/qemu/efi-virtio.rom",
			"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd",
		},
	}
}

// networkCards are the drivers of what servers and virtual machines have. A kernel of the cloud flavour
// has but a few of them.
func networkCards() []string {
	return []string{"virtio_net", "vmxnet3", "ena", "gve", "hv_netvsc", "xen_netfront",
		"e1000", "e1000e", "igb", "igbvf", "igc", "ixgbe", "ixgbevf", "i40e", "iavf", "ice",
		"bnx2", "bnx2x", "bnxt_en", "tg3", "mlx4_core", "mlx4_en", "mlx5_core", "be2net", "cxgb4", "enic", "qede", "sfc", "atlantic", "r8169"}
}

// packageOf is the Debian package that a file is from.
func packageOf(file string) string {
	for _, p := range []struct{ begins, name string }{
		{qemuModules + "block-", "qemu-block-extra"}, {qemuModules, "qemu-system-x86"}, {qemuProgram, "qemu-system-x86"},
		{"/usr/share/seabios/", "seabios"}, {"/usr/share/qemu/", "qemu-system-data"}, {"/usr/lib/ipxe/qemu/", "ipxe-qemu"}, {"/usr/share/OVMF/", "ovmf"},
	} {
		if strings.HasPrefix(file, p.begins) {
			return p.name
		}
	}
	return "the package with " + file
}
