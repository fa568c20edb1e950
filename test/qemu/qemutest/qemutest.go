// Package qemutest finds what tests on real machines need: QEMU, its firmware, boot loaders and a kernel.
package qemutest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/pxe/loaders"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
)

// KernelEnv names a folder with an unpacked linux-image package; otherwise the one of .ci/qemu is used, or
// a kernel that is installed.
const KernelEnv = "RERACK_QEMU_KERNEL"

// Roots are the folders in which to look for a kernel.
func Roots(t testing.TB) []string {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	roots := []string{"/"}
	for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			roots = []string{filepath.Join(dir, ".cache", "qemu"), "/"}
		}
	}
	if named := os.Getenv(KernelEnv); named != "" {
		roots = []string{named}
	}
	return roots
}

// foreign is where .ci/qemu unpacks what is of another architecture than ours.
func foreign(t testing.TB, arch machine.Arch) string {
	t.Helper()
	return filepath.Join(filepath.Dir(Roots(t)[0]), "qemu-"+string(arch))
}

// SourcesOf the test system for another architecture, as Sources.
func SourcesOf(t testing.TB, arch machine.Arch) image.Sources {
	t.Helper()
	if arch == machine.X86 {
		return Sources(t)
	}
	root := foreign(t, arch)
	k, err := imagebuild.FindKernel(root)
	if err != nil {
		missing(t, err.Error())
	}
	return image.Sources{Kernel: k.Image, Modules: k.Modules, Busybox: filepath.Join(root, "bin", "busybox"), Roots: []string{root}}
}

// SignedLoaders finds shim and the GRUBs that are signed, by the names that machines load them by.
func SignedLoaders(t testing.TB, names ...string) map[string]string {
	t.Helper()
	var folders []string
	for _, root := range append(Roots(t), foreign(t, machine.ARM64)) {
		folders = append(folders, loaders.Folders(root)...)
	}
	out := map[string]string{}
	for _, l := range loaders.All() {
		if slices.Contains(names, l.Name) {
			if out[l.Name] = l.Find(folders...); out[l.Name] == "" {
				missing(t, "no "+l.Name+" of the package "+l.Package)
			}
		}
	}
	return out
}

// Emulator is QEMU for an architecture. Its UEFI is asked for by machine.New.
func Emulator(t testing.TB, arch machine.Arch) string {
	t.Helper()
	if arch != machine.ARM64 {
		return QEMU(t)
	}
	path, err := exec.LookPath("qemu-system-aarch64")
	if err != nil {
		missing(t, err.Error())
	}
	if _, err := os.Stat("/usr/share/AAVMF/AAVMF_CODE.fd"); err != nil {
		missing(t, err.Error())
	}
	return path
}

// Sources of the test system. Without them the test is skipped, or fails where peers are required.
func Sources(t testing.TB) image.Sources {
	t.Helper()
	s, err := image.Find(Roots(t)...)
	if err != nil {
		missing(t, err.Error())
	}
	return s
}

// QEMU is the emulator's path.
func QEMU(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		missing(t, err.Error())
	}
	return path
}

// Loaders is the folder of Debian's package ipxe.
func Loaders(t testing.TB) string {
	t.Helper()
	const dir = "/usr/lib/ipxe"
	if _, err := os.Stat(filepath.Join(dir, "snponly.efi")); err != nil {
		missing(t, err.Error())
	}
	return dir
}

// IPMISim says whether a machine's BMC can be OpenIPMI's ipmi_sim.
func IPMISim(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		missing(t, err.Error())
	}
}

// OpenVSwitch says whether real switches can run: they need the package openvswitch-switch and root.
func OpenVSwitch(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("ovs-vswitchd"); err != nil {
		missing(t, err.Error())
	}
	if os.Geteuid() != 0 {
		missing(t, "real switches need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		missing(t, err.Error())
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what + "; run .ci/qemu")
}
