package capture_test

import (
	"context"
	"encoding/hex"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/orchestrator/bootplane"
	desk "rerack.dev/rerack/orchestrator/capture"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/workflows"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type deaf struct{}

func (deaf) Reached(context.Context, string, workflows.Milestone) error { return nil }

const run = "volume-copy-1"

type site struct {
	t     *testing.T
	store store.Store
	plane *bootplane.Plane
	*pxetest.Site
}

// start is a boot server over a true store, with a capture for machine 1.
func start(t *testing.T) *site {
	st, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	ca, err := pki.Open(t.TempDir())
	must(t, err)
	s := &site{t: t, store: st, plane: &bootplane.Plane{Store: st, Signals: deaf{}, CA: ca, Now: time.Now, Log: slog.New(slog.DiscardHandler)}}
	s.Site = pxetest.Start(t, nil, func(c *bootserver.Config) {
		s.plane.Table, c.Sink = c.Table, s.plane
		c.Captor = &desk.Desk{Store: st, Now: time.Now, CHAP: func(_ context.Context, name string) (ipxe.Login, error) {
			return ipxe.Login{User: name, Secret: secret.New("canary-secret")}, nil
		}}
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.plane.Follow(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	s.put(state.CapturesAt+run, state.Capture{Run: run, CaptureRequest: state.CaptureRequest{Machine: "m1", Disk: "serial:S1", Volume: "copy"},
		ChunkBytes: 4 << 20, Stage: state.CaptureCopy, Portals: []string{"10.0.0.1:3260"}, Target: "iqn.2026-01.org.example:copy", LUN: 3, CHAP: "san/copy",
		Source: "10.9.0.1", Initiator: "iqn.2026-01.dev.rerack:capture-m1"})
	return s
}

func (s *site) put(key string, v any) {
	s.t.Helper()
	b, err := state.Encode(v)
	must(s.t, err)
	must(s.t, s.store.Txn(s.t.Context(), store.Put(key, b)))
}

// boot boots machine 1 for the nth time, up to where its system would phone home.
func (s *site) boot(n int, isCapture bool) (phoneHome string) {
	s.t.Helper()
	b := state.Boot{Name: "m1", Machine: "m1", Hostname: "m1", Capture: isCapture, Run: run, Epoch: 7, Workflow: "recovery/" + run, Reboots: n, MACs: []string{pxetest.MAC(1).String()},
		Address: "10.1.0.1/16", Type: "capture", Kernel: string(s.Kernel), Initrds: []string{string(s.Initrd)}, Expires: time.Now().Add(time.Hour)}
	s.put(state.BootsAt+"m1", b)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if e, ok := s.plane.Table.Lookup(pxetest.MAC(1)); ok && e.Intent.Run == bootplane.BootOf(b) {
			break
		}
		if time.Now().After(end) {
			s.t.Fatal("the boot record is not served")
		}
	}
	out, err := bootclient.Run(s.t.Context(), s.Client(1, pxe.ArchBIOS))
	must(s.t, err)
	return out.PhoneHome
}

func digest(c byte) string { return hex.EncodeToString([]byte(strings.Repeat(string(c), 32))) }

func TestOrdersAndReports(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	url, nonce := s.boot(1, true), bootclient.NewNonce()
	if _, err := bootclient.Orders(ctx, s.HTTP, url, nonce); !fault.Is(err, fault.Conflict) {
		t.Errorf("orders before the phone-home: %v", err)
	}
	must(t, bootclient.Report(ctx, s.HTTP, url, httpboot.Report{Nonce: nonce}))
	o, err := bootclient.Orders(ctx, s.HTTP, url, nonce)
	must(t, err)
	if o.Disk != "serial:S1" || o.Target != "iqn.2026-01.org.example:copy" || o.LUN != 3 || o.User != "san/copy" || o.Secret != "canary-secret" || o.Stage != capture.Copy || o.Next != 0 {
		t.Errorf("%+v %q", o, o.Secret)
	}
	if _, err := bootclient.Orders(ctx, s.HTTP, url, bootclient.NewNonce()); !fault.Is(err, fault.Conflict) {
		t.Errorf("orders with another's nonce: %v", err)
	}
	const size = 10 << 20 // three chunks, the last one short
	at, err := bootclient.ReportCapture(ctx, s.HTTP, url, nonce, capture.Report{Stage: capture.Copy, Size: size, Digests: []string{digest('a'), digest('b')}})
	if err != nil || at.Next != 2 || at.Stage != capture.Copy {
		t.Fatalf("%+v, %v", at, err)
	}
	if _, err := bootclient.ReportCapture(ctx, s.HTTP, url, bootclient.NewNonce(), capture.Report{Stage: capture.Copy, Size: size, First: 2, Digests: []string{digest('c')}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a report with another's nonce: %v", err)
	}

	// The machine is booted again: the token of the boot before is good for nothing, and orders go on.
	again, second := s.boot(2, true), bootclient.NewNonce()
	if again == url {
		t.Fatal("the token was given twice")
	}
	if _, err := bootclient.ReportCapture(ctx, s.HTTP, url, nonce, capture.Report{Stage: capture.Copy, Size: size, First: 2, Digests: []string{digest('c')}}); err == nil {
		t.Error("a boot that is over reports")
	}
	must(t, bootclient.Report(ctx, s.HTTP, again, httpboot.Report{Nonce: second}))
	o, err = bootclient.Orders(ctx, s.HTTP, again, second)
	if err != nil || o.Next != 2 || o.Size != size {
		t.Fatalf("%+v, %v", o, err)
	}
	report := func(r capture.Report) capture.State {
		t.Helper()
		r.Size = size
		at, err := bootclient.ReportCapture(ctx, s.HTTP, again, second, r)
		must(t, err)
		return at
	}
	if at := report(capture.Report{Stage: capture.Copy, First: 2, Digests: []string{digest('c')}}); at.Stage != capture.Verify || at.Next != 0 {
		t.Errorf("copied: %+v", at)
	}
	report(capture.Report{Stage: capture.Verify, First: 0, Digests: []string{digest('a')}, Hash: []byte("so far")})
	if o, err = bootclient.Orders(ctx, s.HTTP, again, second); err != nil || string(o.Hash) != "so far" || o.Next != 1 {
		t.Errorf("%+v, %v", o.State, err)
	}
	if at := report(capture.Report{Stage: capture.Verify, First: 1, Digests: []string{digest('b'), digest('c')}, SHA256: digest('d')}); at.Stage != capture.Done {
		t.Errorf("read back: %+v", at)
	}
}

func TestFailuresAreNotSwallowed(t *testing.T) {
	s := start(t)
	url, nonce := s.boot(1, true), bootclient.NewNonce()
	must(t, bootclient.Report(t.Context(), s.HTTP, url, httpboot.Report{Nonce: nonce}))
	_, err := bootclient.ReportCapture(t.Context(), s.HTTP, url, nonce, capture.Report{Stage: capture.Copy,
		Failure: capture.NewFailure(&fault.Error{Kind: fault.NotFound, What: "disk not found: serial:S1\x1b[2J"})})
	must(t, err)
	c, _, err := state.Load[state.Capture](t.Context(), s.store, state.CapturesAt+run)
	if err != nil || c.Stage != state.CaptureFailed || c.Kind != "not-found" || c.Reason != "disk not found: serial:S1.[2J" {
		t.Errorf("%+v, %v", c, err)
	}
}

// Who boots something else gets no orders, whatever it knows of a capture.
func TestOnlyForCaptures(t *testing.T) {
	s := start(t)
	url, nonce := s.boot(1, false), bootclient.NewNonce()
	must(t, bootclient.Report(t.Context(), s.HTTP, url, httpboot.Report{Nonce: nonce}))
	if o, err := bootclient.Orders(t.Context(), s.HTTP, url, nonce); !fault.Is(err, fault.Conflict) || o.Secret != "" {
		t.Errorf("%v, %v", o, err)
	}
}
