package pxetest_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/grub"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/pxe/tftp"
)

// get fetches a file by TFTP; token in a name stands for that of machine i.
func get(t *testing.T, s *pxetest.Site, i int, name string) (string, error) {
	t.Helper()
	e, ok := s.Table.Lookup(pxetest.MAC(i))
	if !ok {
		t.Fatalf("no machine %d", i)
	}
	var b bytes.Buffer
	_, err := tftp.Client{Block: 1024}.Get(within(t), s.TFTP, strings.ReplaceAll(name, "token", e.Token().Reveal()), &b)
	return b.String(), err
}

// locked is a log that may be read while it is written.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var ours = []string{"boot/token/grub.cfg", "boot/token/kernel", "boot/token/initrd/0", "boot/token/grubaa64.efi"}

// TestTFTPWithAToken holds what TFTP gives to the rules of HTTP: nothing to who has no token, to a
// machine that is held, or whose token is used up or past its end.
func TestTFTPWithAToken(t *testing.T) {
	var log locked
	s := pxetest.Start(t, nil, func(c *bootserver.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	in := s.Intent(1, s.KernelBoot())
	s.Set(in)
	other := s.Intent(2, &pxe.Boot{LocalDisk: true})
	s.Set(other)
	for _, name := range ours {
		if _, err := get(t, s, 1, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := get(t, s, 1, "/"+name); err != nil {
			t.Errorf("/%s: %v", name, err)
		}
	}
	refused := func(i int, names ...string) {
		t.Helper()
		for _, name := range names {
			if b, err := get(t, s, i, name); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %.20q, %v", name, b, err)
			}
		}
	}
	refused(1, "grub.cfg", "boot/grub.cfg", "boot/token", "boot/token/", "boot//kernel", "boot/token/initrd/1", "boot/token/initrd/-1", "boot/token/initrd/",
		"boot/token/../kernel", "boot/tokenx/kernel", "boot/"+strings.Repeat("A", 43)+"/kernel", "token/kernel", "boot/token/script.ipxe", "boot/token/phone-home", "boot/token/image/boot.efi", "kernel")
	refused(2, "boot/token/grub.cfg", "boot/token/kernel") // it boots nothing that GRUB could

	if b, err := get(t, s, 1, grub.EntryPath); err != nil || b != string(grub.Entry()) {
		t.Errorf("%q, %v", b, err)
	}
	in.Held = true
	s.Set(in)
	refused(1, "boot/token/kernel", "boot/token/initrd/0")
	if b, err := get(t, s, 1, "boot/token/grub.cfg"); err != nil || b != string(grub.Hold()) {
		t.Errorf("held: %q, %v", b, err)
	}
	in.Held = false
	s.Set(in)
	out := boot(t, s.Client(1, pxe.ArchEFIARM64))
	if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); err != nil {
		t.Fatal(err)
	}
	refused(1, ours...)
	if m, err := s.Ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil || m.Detail != "used token asks for grub.cfg" {
		t.Errorf("alarm %+v, %v", m, err)
	}

	late := s.Intent(3, s.KernelBoot())
	late.Expires = time.Now().Add(-time.Second)
	s.Set(late)
	refused(3, ours...)
	e, _ := s.Table.Lookup(pxetest.MAC(1))
	if strings.Contains(log.String(), e.Token().Reveal()) {
		t.Errorf("the log tells the token:\n%s", log.String())
	}
}

// TestTFTPChecksTheSource takes a token only from its machine, when it is told to.
func TestTFTPChecksTheSource(t *testing.T) {
	s := pxetest.Start(t, nil, func(c *bootserver.Config) { c.CheckSource = true })
	s.Set(s.Intent(1, s.KernelBoot()))
	if _, err := get(t, s, 1, "boot/token/grub.cfg"); !fault.Is(err, fault.NotFound) {
		t.Errorf("from elsewhere: %v", err)
	}
	if _, err := s.Ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil {
		t.Error(err)
	}
	in := s.Intent(2, s.KernelBoot())
	in.NICs[0].Address, in.NICs[0].Gateway = netip.MustParsePrefix("127.0.0.1/8"), netip.Addr{}
	s.Set(in)
	if _, err := get(t, s, 2, "boot/token/grub.cfg"); err != nil {
		t.Errorf("from the machine: %v", err)
	}
}

// TestTFTPServesNoChangedFile is H42 for GRUB's files.
func TestTFTPServesNoChangedFile(t *testing.T) {
	s := pxetest.Start(t, nil, nil)
	s.Set(s.Intent(1, s.KernelBoot()))
	flip(t, filepath.Join(s.Dir, "sha256", s.Initrd.Hex()))
	if out := boot(t, s.Client(1, pxe.ArchEFIARM64)); out.End != bootclient.EndLocal {
		t.Errorf("booted a changed file: %+v", out)
	}
	if m, err := s.Ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil || !strings.Contains(m.Detail, "unverified") {
		t.Errorf("alarm %+v, %v", m, err)
	}
}
