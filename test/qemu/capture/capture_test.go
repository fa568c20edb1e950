// Package capture_test copies the local disk of a real machine into a volume of a real array.
package capture_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/bootplane"
	desk "rerack.dev/rerack/orchestrator/capture"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
	"rerack.dev/rerack/workflows"
)

const (
	run    = "volume-copy-1"
	quiet  = "console=ttyS0 quiet no_timer_check tsc=reliable "
	target = sitetest.Volume
	// memory is what the environment is made to run in, in MiB.
	memory = 192
	// patience is for an emulated machine that copies, on a busy one.
	patience = 4 * time.Minute
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deaf are signals to nobody: here no workflow waits.
type deaf struct{}

func (deaf) Reached(context.Context, string, workflows.Milestone) error { return nil }

// slow is the server's desk, which takes no report of chunks from limit on: the machine waits there.
type slow struct {
	desk.Desk
	limit atomic.Int64
	held  atomic.Bool
}

func (s *slow) Report(ctx context.Context, by pxe.Caller, r capture.Report) (capture.State, error) {
	if r.Stage == capture.Copy && r.First+int64(len(r.Digests)) > s.limit.Load() {
		s.held.Store(true)
		return capture.State{}, fault.New(fault.Busy, "not yet")
	}
	return s.Desk.Report(ctx, by, r)
}

// lab is a site with the product's boot plane, and the image that copies.
type lab struct {
	*sitetest.Site
	t      *testing.T
	store  store.Store
	desk   *slow
	boot   *pxetest.Site
	plane  *bootplane.Plane
	record state.Boot
}

func newLab(t *testing.T) *lab {
	kernel, initrd := built(t)
	l := &lab{Site: sitetest.New(t), t: t}
	var err error
	l.store, err = embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	must(t, err)
	t.Cleanup(func() { must(t, l.store.Close()) })
	ca, err := pki.Open(t.TempDir())
	must(t, err)
	l.desk = &slow{Desk: desk.Desk{Store: l.store, Now: time.Now}}
	l.plane = &bootplane.Plane{Store: l.store, Signals: deaf{}, CA: ca, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	l.boot = l.Serve(func(c *bootserver.Config) {
		l.plane.Table, c.Sink, c.Captor = c.Table, l.plane, l.desk
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.plane.Follow(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	take := func(name string, b []byte) string {
		d, err := l.boot.Images.Import(t.Context(), name, bytes.NewReader(b), "")
		must(t, err)
		return string(d)
	}
	l.record = state.Boot{Capture: true, Run: run, Workflow: "recovery/" + run, Gateway: l.Self.String(), Type: "capture",
		Kernel: take("capture.kernel", kernel), Initrds: []string{take("capture.initrd", initrd)},
		Cmdline: map[string]string{"console": "ttyS0", "quiet": "", "no_timer_check": "", "tsc": "reliable"}}
	t.Logf("kernel %d KiB, initial RAM disk %d KiB", len(kernel)>>10, len(initrd)>>10)
	return l
}

// built is the image with the agent of this checkout.
func built(t *testing.T) (kernel, initrd []byte) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "rerack-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "rerack.dev/rerack/cmd/rerack-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, err := imagebuild.FindKernel(qemutest.Roots(t)...)
	if err != nil {
		qemutest.Sources(t) // skips, or fails where peers are required
	}
	r := imagebuild.Capture(k, bin)
	var b bytes.Buffer
	must(t, r.Build(&b))
	kernel, err = os.ReadFile(k.Image)
	must(t, err)
	return kernel, b.Bytes()
}

func put(t *testing.T, s store.Store, key string, v any) {
	t.Helper()
	b, err := state.Encode(v)
	must(t, err)
	must(t, s.Txn(t.Context(), store.Put(key, b)))
}

// capture writes down what is to be copied.
func (l *lab) capture(disk string, chunk int64) {
	l.t.Helper()
	put(l.t, l.store, state.CapturesAt+run, state.Capture{Run: run, CaptureRequest: state.CaptureRequest{Machine: "m1", Disk: disk, Volume: "copy"},
		ChunkBytes: chunk, Stage: state.CaptureCopy, Portals: []string{netip.AddrPortFrom(l.Self, 3260).String()}, Target: target, LUN: 1,
		Source: addressOf(1), Initiator: "iqn.2026-01.dev.rerack:capture-m1"})
}

func (l *lab) stands() state.Capture {
	l.t.Helper()
	c, _, err := state.Load[state.Capture](l.t.Context(), l.store, state.CapturesAt+run)
	must(l.t, err)
	return c
}

// on boots machine 1 with its disks for the nth time.
func (l *lab) on(n int, disks ...string) *sitetest.Running {
	l.t.Helper()
	b := l.record
	b.Epoch, b.Reboots = 1, n
	l.serve(1, b)
	return l.Start(1, machine.Boot{Device: machine.Network}, vswitch.Settings{Access: sitetest.VLAN}, machine.Config{MemoryMiB: memory, Disks: disks})
}

// serve has the boot server boot machine i so.
func (l *lab) serve(i int, b state.Boot) {
	l.t.Helper()
	b.Name = fmt.Sprint("m", i)
	b.Machine, b.Hostname, b.MACs = b.Name, b.Name, []string{pxetest.MAC(i).String()}
	b.Address, b.Expires = fmt.Sprintf("10.1.0.%d/16", i), time.Now().Add(time.Hour)
	put(l.t, l.store, state.BootsAt+b.Name, b)
	l.until("the boot record is served", func() bool {
		e, ok := l.plane.Table.Lookup(pxetest.MAC(i))
		return ok && e.Intent.Run == bootplane.BootOf(b)
	})
}

func (l *lab) until(what string, is func() bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			c := l.stands()
			l.t.Fatalf("never: %s; the capture stands at %s %d of %d: %s", what, c.Stage, c.Next, c.Chunks(), c.Reason)
		}
	}
}

func addressOf(i int) string { return sitetest.StorageAddress(vswitch.MAC(pxetest.MAC(i))) }

func digest(t *testing.T, path string, n int64) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyN(h, f, n)
	must(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// TestADiskBecomesAVolume captures the disk of an installed machine. The array takes the volume away and gives
// it back in mid-copy, and then the machine loses power; it goes on where it was. Another machine boots the volume.
func TestADiskBecomesAVolume(t *testing.T) {
	l := newLab(t)
	local := installed(t, "db1")
	info, err := os.Stat(local)
	must(t, err)
	was := digest(t, local, info.Size())
	decoy := filepath.Join(t.TempDir(), "decoy")
	must(t, os.WriteFile(decoy, bytes.Repeat([]byte("not this one, "), 1<<16), 0o600))
	must(t, os.Truncate(decoy, 2<<20))
	volume := filepath.Join(t.TempDir(), "volume")
	must(t, os.WriteFile(volume, bytes.Repeat([]byte{0xa5}, int(info.Size()+(4<<20))), 0o600)) // what lay there before
	v := l.SAN(volume)

	const chunk = 256 << 10
	l.capture("serial:"+machine.DiskSerial("m1", 1), chunk)
	chunks := capture.Chunks(info.Size(), chunk)
	if chunks < 100 {
		t.Fatalf("the disk has %d chunks only", chunks)
	}
	v.Mask(t, 1, addressOf(1))
	l.desk.limit.Store(chunks / 4)
	begin := time.Now()
	first := l.on(1, decoy, local)
	l.until("the machine waits to report a quarter", l.desk.held.Load)
	t.Logf("power-on to the first quarter: %s", time.Since(begin).Round(time.Millisecond))

	v.Mask(t, 2)
	dials := v.Dialed(addressOf(1))
	l.desk.limit.Store(chunks / 2)
	l.until("the machine tries to connect again", func() bool { return v.Dialed(addressOf(1)) > dials })
	l.desk.held.Store(false)
	v.Mask(t, 3, addressOf(1))
	l.until("the machine waits to report the half", l.desk.held.Load)
	first.Off()
	stood := l.stands()
	if stood.Next < chunks/8 || stood.Next > chunks/2 || stood.Stage != state.CaptureCopy {
		t.Fatalf("when the power went it stood at %s %d of %d", stood.Stage, stood.Next, chunks)
	}

	// What is proven is not copied again: it would be found out by what is written over it now.
	f, err := os.OpenFile(volume, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mark := []byte("this chunk was proven")
	kept := make([]byte, len(mark))
	_, err = f.ReadAt(kept, 0)
	must(t, err)
	_, err = f.WriteAt(mark, 0)
	must(t, err)
	l.desk.held.Store(false)
	l.desk.limit.Store(chunks - 1)
	second := l.on(2, decoy, local)
	l.until("the machine waits to report the last", l.desk.held.Load)
	got := make([]byte, len(mark))
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, mark) {
		t.Error("the second boot copied again what was proven")
	}
	_, err = f.WriteAt(kept, 0)
	must(t, err)
	l.desk.limit.Store(chunks)
	l.until("it is done", func() bool { return l.stands().Stage == state.CaptureDone })
	<-second.Ended // the machine turns itself off
	c := l.stands()
	if is := digest(t, volume, info.Size()); c.SHA256 != was || is != was || c.Size != info.Size() {
		t.Fatalf("the disk was %s of %d bytes, the volume is %s; reported is %s of %d bytes", was, info.Size(), is, c.SHA256, c.Size)
	}
	if digest(t, local, info.Size()) != was {
		t.Error("the disk was written")
	}
	t.Logf("%d MiB", info.Size()>>20)

	v.Mask(t, 4, addressOf(2))
	l.serve(2, state.Boot{Workload: "db1", Run: "place", Workflow: "boot/place", Epoch: 4, Gateway: l.Self.String(), Type: "san",
		SAN: &state.SANBoot{Portal: netip.AddrPortFrom(l.Self, 3260).String(), Target: target, LUN: 1, Initiator: "iqn.2026-01.org.example:host-db1"}})
	moved := l.On(2, machine.BIOS, machine.Boot{Device: machine.Network})
	l.Says(moved, "rerack: disk /dev/sda: found record 0")
	l.Says(moved, "rerack: serving")
}

// installed makes a disk with a system of its own.
func installed(t *testing.T, workload string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	kernel, initrd, err := image.BuildForDisk(qemutest.Sources(t))
	must(t, err)
	loader, err := image.FindLoader(qemutest.Roots(t)...)
	must(t, err)
	must(t, loader.WriteDisk(t.Context(), path, kernel, initrd, quiet+"lab.disk=yes rerack.workload="+workload))
	return path
}

// A machine that cannot do what it is told says why.
func TestWhatCannotBeCopied(t *testing.T) {
	l := newLab(t)
	disk, volume := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "volume")
	must(t, os.WriteFile(disk, bytes.Repeat([]byte("data"), 1<<20), 0o600))
	must(t, os.WriteFile(volume, make([]byte, 1<<20), 0o600))
	v := l.SAN(volume)
	v.Mask(t, 1, addressOf(1))
	l.desk.limit.Store(1 << 20)
	l.capture("serial:"+machine.DiskSerial("m1", 0), 64<<10)
	<-l.on(1, disk).Ended
	if c := l.stands(); c.Stage != state.CaptureFailed || !strings.Contains(c.Reason, "volume too small") || c.Kind != fault.Unsupported.String() {
		t.Errorf("%s, %s: %s", c.Stage, c.Kind, c.Reason)
	}
	if b, err := os.ReadFile(volume); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("something was written, %v", err)
	}
}
