package pxetest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func boot(t *testing.T, c bootclient.Config) bootclient.Outcome {
	t.Helper()
	out, err := bootclient.Run(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryFirmwareBootsTheKernel(t *testing.T) {
	tests := []struct {
		name   string
		arch   pxe.Arch
		rom    bool
		secure bool
		loader string
	}{
		{"BIOS", pxe.ArchBIOS, false, false, "undionly.kpxe"},
		{"UEFI x64", pxe.ArchEFIX64, false, false, "snponly.efi"},
		{"UEFI BC", pxe.ArchEFIBC, false, false, "snponly.efi"},
		{"UEFI arm64", pxe.ArchEFIARM64, false, false, "grubaa64.efi"},
		{"HTTP boot x64", pxe.ArchHTTPX64, false, false, "snponly.efi"},
		{"HTTP boot arm64", pxe.ArchHTTPARM64, false, false, "snponly-arm64.efi"},
		{"iPXE in ROM", pxe.ArchBIOS, true, false, ""},
		{"Secure Boot x64", pxe.ArchEFIX64, false, true, "shimx64.efi"},
		{"Secure Boot BC", pxe.ArchEFIBC, false, true, "shimx64.efi"},
		{"Secure Boot arm64", pxe.ArchEFIARM64, false, true, "shimaa64.efi"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := pxetest.Start(t, nil, nil)
			in := s.Intent(i+1, s.KernelBoot())
			in.SecureBoot = tt.secure
			s.Set(in)
			c := s.Client(i+1, tt.arch)
			c.IPXE = tt.rom
			out := boot(t, c)
			if out.End != bootclient.EndKernel || out.Kernel != s.Kernel || !slices.Equal(out.Initrds, []pxe.Digest{s.Initrd}) || out.Loader != s.Loaders[tt.loader] {
				t.Fatalf("outcome %+v", out)
			}
			if line := strings.TrimPrefix(out.Cmdline, "initrd=initrd0 "); !strings.HasPrefix(line, "console=ttyS0,115200 quiet rerack.phonehome=http://127.0.0.1:") {
				t.Errorf("command line %q", out.Cmdline)
			}
			if out.Hostname != fmt.Sprintf("w%d", i+1) || out.Address.String() != fmt.Sprintf("10.1.0.%d/16", i+1) {
				t.Errorf("identity %s %s", out.Hostname, out.Address)
			}
			rep := httpboot.Report{Nonce: bootclient.NewNonce(), Detail: "up"}
			if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, rep); err != nil {
				t.Fatal(err)
			}
			machine := fmt.Sprintf("m%d", i+1)
			for _, k := range []pxe.Kind{pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel, pxe.KindPhoneHome} {
				m, err := s.Ledger.Wait(within(t), machine, k)
				if err != nil {
					t.Fatal(err)
				}
				if m.Run != "rack-a/1" || m.Epoch != 1 {
					t.Errorf("milestone %+v", m)
				}
			}
		})
	}
}

func TestOtherWaysToBoot(t *testing.T) {
	s := pxetest.Start(t, nil, nil)
	target := ipxe.Target{Portal: netip.MustParseAddrPort("127.0.0.1:3270"), Name: "iqn.2026-01.org.example:vol-db1", LUN: 17, Initiator: "iqn.2026-01.org.example:w-db1"}
	t.Run("iSCSI", func(t *testing.T) {
		s.Set(s.Intent(1, &pxe.Boot{ISCSI: &target}))
		out := boot(t, s.Client(1, pxe.ArchEFIX64))
		if out.End != bootclient.EndSAN || out.Target == nil || *out.Target != target {
			t.Fatalf("outcome %+v", out)
		}
		if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); err != nil {
			t.Fatalf("a system booted from SAN cannot report: %v", err)
		}
	})
	t.Run("FC disk", func(t *testing.T) {
		s.Set(s.Intent(2, &pxe.Boot{LocalDisk: true}))
		if out := boot(t, s.Client(2, pxe.ArchBIOS)); out.End != bootclient.EndLocalDisk || out.PhoneHome == "" {
			t.Fatalf("outcome %+v", out)
		}
	})
	t.Run("UEFI image by firmware", func(t *testing.T) {
		s.Set(s.Intent(3, &pxe.Boot{HTTP: &pxe.Image{File: s.Image, Form: pxe.FormEFI}}))
		if out := boot(t, s.Client(3, pxe.ArchHTTPX64)); out.End != bootclient.EndImage || out.Image != s.Image || out.Loader != "" {
			t.Fatalf("outcome %+v", out)
		}
	})
	t.Run("disk image by iPXE", func(t *testing.T) {
		s.Set(s.Intent(4, &pxe.Boot{HTTP: &pxe.Image{File: s.Image, Form: pxe.FormDisk}}))
		if out := boot(t, s.Client(4, pxe.ArchBIOS)); out.End != bootclient.EndImage || out.Image != s.Image || out.Loader == "" {
			t.Fatalf("outcome %+v", out)
		}
	})
	t.Run("reservation only", func(t *testing.T) {
		s.Set(s.Intent(5, nil))
		if out := boot(t, s.Client(5, pxe.ArchBIOS)); out.End != bootclient.EndLocal || out.Address.String() != "10.1.0.5/16" {
			t.Fatalf("outcome %+v", out)
		}
	})
	t.Run("unknown machine", func(t *testing.T) {
		c := s.Client(6, pxe.ArchBIOS)
		c.DHCPTimeout, c.DHCPTries = 20*time.Millisecond, 2
		if out := boot(t, c); out.End != bootclient.EndLocal || out.Address.IsValid() {
			t.Fatalf("outcome %+v", out)
		}
	})
	t.Run("port in another VLAN", func(t *testing.T) {
		s.Set(s.Intent(7, s.KernelBoot()))
		c := s.Client(7, pxe.ArchBIOS)
		c.LinkSelection = netip.MustParseAddr("10.9.0.0")
		c.DHCPTimeout, c.DHCPTries = 20*time.Millisecond, 2
		if out := boot(t, c); out.End != bootclient.EndLocal || out.Address.IsValid() {
			t.Fatalf("outcome %+v", out)
		}
	})
}

// TestTokenOnce is invariant I16: over restarts and replays, one phone-home of one boot is accepted.
func TestTokenOnce(t *testing.T) {
	ledger := pxetest.NewLedger()
	s := pxetest.Start(t, ledger, nil)
	s.Set(s.Intent(1, s.KernelBoot()))
	out := boot(t, s.Client(1, pxe.ArchBIOS))
	nonce := bootclient.NewNonce()
	send := func(s *pxetest.Site, u string, r httpboot.Report) error {
		return bootclient.Report(within(t), s.HTTP, u, r)
	}
	if err := send(s, out.PhoneHome, httpboot.Report{Nonce: nonce, Milestone: "healthy"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("healthy before phone-home: %v", err)
	}
	for range 2 {
		if err := send(s, out.PhoneHome, httpboot.Report{Nonce: nonce}); err != nil {
			t.Fatalf("phone-home and its retry: %v", err)
		}
	}
	if err := send(s, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); !fault.Is(err, fault.Conflict) {
		t.Errorf("replay with another nonce: %v", err)
	}
	if _, err := ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"script.ipxe", "kernel", "initrd/0"} {
		resp, err := s.HTTP.Get(strings.TrimSuffix(out.PhoneHome, pxe.PathPhoneHome) + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusGone {
			t.Errorf("%s with a used token: %s", path, resp.Status)
		}
	}
	c := s.Client(1, pxe.ArchBIOS)
	c.DHCPTimeout, c.DHCPTries = 20*time.Millisecond, 2
	if out := boot(t, c); out.End != bootclient.EndLocal || out.Address.IsValid() {
		t.Errorf("machine was served again: %+v", out)
	}
	if _, err := ledger.Wait(within(t), "m1", pxe.KindReboot); err != nil {
		t.Error(err)
	}
	s.Stop()

	// A new server knows nothing but what the ledger and the record keep.
	for _, recorded := range []bool{false, true} {
		again := pxetest.Start(t, ledger, nil)
		in := again.Intent(1, again.KernelBoot())
		if recorded {
			in.Nonce = nonce
		}
		again.Set(in)
		e, _ := again.Table.Lookup(pxetest.MAC(1))
		u := (&pxe.Decider{BaseURL: "http://" + baseOf(t, again)}).URL(e, pxe.PathPhoneHome)
		if err := send(again, u, httpboot.Report{Nonce: bootclient.NewNonce()}); !fault.Is(err, fault.Conflict) {
			t.Errorf("replay after a restart, recorded=%v: %v", recorded, err)
		}
		if err := send(again, u, httpboot.Report{Nonce: nonce}); err != nil {
			t.Errorf("retry after a restart, recorded=%v: %v", recorded, err)
		}
		if err := send(again, u, httpboot.Report{Nonce: nonce, Milestone: "healthy"}); err != nil {
			t.Errorf("healthy after a restart, recorded=%v: %v", recorded, err)
		}
		again.Stop()
	}
}

// baseOf boots a second machine to learn the server's address.
func baseOf(t *testing.T, s *pxetest.Site) string {
	t.Helper()
	s.Set(s.Intent(99, s.KernelBoot()))
	out := boot(t, s.Client(99, pxe.ArchBIOS))
	host, _, _ := strings.Cut(strings.TrimPrefix(out.PhoneHome, "http://"), "/")
	return host
}

func TestPhoneHomeWaitsForTheRecord(t *testing.T) {
	s := pxetest.Start(t, nil, nil)
	s.Set(s.Intent(1, s.KernelBoot()))
	out := boot(t, s.Client(1, pxe.ArchBIOS))
	s.Ledger.Fail(func(m pxe.Milestone) error { return fault.New(fault.Unreachable, "store is down") })
	resp, err := s.HTTP.Post(out.PhoneHome, "application/json", strings.NewReader(`{"nonce":"0123456789abcdef"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || s.Ledger.Nonce("m1", "rack-a/1", 1) != "" {
		t.Fatalf("answered %s though nothing was recorded", resp.Status)
	}
	s.Ledger.Fail(nil)
	if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, httpboot.Report{Nonce: "0123456789abcdef"}); err != nil {
		t.Fatal(err)
	}
}

// TestSlowSinkBlocksNothing boots while the sink hangs: only phone-home may wait for it.
func TestSlowSinkBlocksNothing(t *testing.T) {
	s := pxetest.Start(t, nil, func(c *bootserver.Config) { c.QueuedMilestones = 1 })
	s.Set(s.Intent(1, s.KernelBoot()))
	release := make(chan struct{})
	s.Ledger.Fail(func(pxe.Milestone) error { <-release; return errors.New("late") })
	defer close(release)
	if out := boot(t, s.Client(1, pxe.ArchBIOS)); out.End != bootclient.EndKernel {
		t.Fatalf("outcome %+v", out)
	}
}

// TestFlippedBit is H42: no file that differs from its digest is served, to any protocol.
func TestFlippedBit(t *testing.T) {
	files := map[string]func(*pxetest.Site) pxe.Digest{
		"kernel": func(s *pxetest.Site) pxe.Digest { return s.Kernel },
		"initrd": func(s *pxetest.Site) pxe.Digest { return s.Initrd },
		"loader": func(s *pxetest.Site) pxe.Digest { return s.Loaders["undionly.kpxe"] },
	}
	for name, pick := range files {
		t.Run(name, func(t *testing.T) {
			s := pxetest.Start(t, nil, nil)
			s.Set(s.Intent(1, s.KernelBoot()))
			if out := boot(t, s.Client(1, pxe.ArchBIOS)); out.End != bootclient.EndKernel {
				t.Fatalf("before: %+v", out)
			}
			flip(t, filepath.Join(s.Dir, "sha256", pick(s).Hex()))
			if out := boot(t, s.Client(1, pxe.ArchBIOS)); out.End != bootclient.EndLocal {
				t.Fatalf("booted a changed %s: %+v", name, out)
			}
			if name != "loader" {
				if m, err := s.Ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil || !strings.Contains(m.Detail, "unverified") {
					t.Errorf("alarm %+v, %v", m, err)
				}
			}
		})
	}
}

// flip changes one bit and sets the modification time back, as a thorough attacker would.
func flip(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func TestManyMachinesAtOnce(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 50
	}
	s := pxetest.Start(t, nil, nil)
	ins := make([]pxe.Intent, n)
	for i := range ins {
		ins[i] = s.Intent(i+1, s.KernelBoot())
	}
	if err := s.Table.Replace(ins); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c := s.Client(i+1, pxe.ArchEFIX64)
			c.DHCPTries = 6
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			out, err := bootclient.Run(ctx, c)
			if err != nil || out.End != bootclient.EndKernel {
				t.Errorf("machine %d: %+v %v", i+1, out.Reason, err)
				return
			}
			if err := bootclient.Report(ctx, s.HTTP, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); err != nil {
				t.Errorf("machine %d: %v", i+1, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d machines in %v, %+v", n, time.Since(begin), s.Server.Stats())
}

func TestSwitchedOff(t *testing.T) {
	s := pxetest.Start(t, nil, nil)
	c := s.Client(1, pxe.ArchBIOS) // unknown: it would ask for long
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bootclient.Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestLedgerIsASink(t *testing.T) {
	l := pxetest.NewLedger()
	pxetest.TestMilestones(t, func(*testing.T) pxe.Milestones { return l })
}
