package ontap_test

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/ontapsim"
)

const portC = "20:00:00:25:b5:00:00:0c"

func TestContract(t *testing.T) {
	maskingtest.Run(t, func(t *testing.T) maskingtest.Rig { return newRig(t) })
}

// rig is a simulated array behind a relay that can make single requests fail, reads too.
type rig struct {
	sim *ontapsim.Sim
	ca  *pki.CA
	url string // of the relay

	mu       sync.Mutex
	masked   map[string][]string
	logins   []string
	watch    func()
	requests int
	pass     int
	how      maskingtest.Failure // "" when none is due
	forget   string              // requests of this method are answered with success and not passed on
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{masked: map[string][]string{}}
	var err error
	if r.ca, err = pki.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	cert, err := r.ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	behind := listen()
	if r.sim, err = ontapsim.Start(ontapsim.Config{Listener: behind, Certificate: cert, Username: "admin", Password: "pw", Backend: r,
		LUNs: []ontapsim.LUN{{Name: lun1, SVM: "svm1"}, {Name: lun2, SVM: "svm1"}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.sim.Close() })

	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: behind.Addr().String()})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.ca.Pool()}}
	proxy.Transport = transport
	quiet := log.New(io.Discard, "", 0)
	proxy.ErrorLog = quiet
	front := listen()
	r.url = "https://" + front.Addr().String()
	server := &http.Server{Handler: r.relay(proxy), ErrorLog: quiet, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(front, "", "") }()
	t.Cleanup(func() { _ = server.Close(); <-done; transport.CloseIdleConnections() })
	return r
}

func (r *rig) relay(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests++
		how := maskingtest.Failure("")
		if r.how != "" {
			if r.pass == 0 {
				how, r.how = r.how, ""
			}
			r.pass--
		}
		forget := r.forget == req.Method
		r.mu.Unlock()
		switch {
		case how == maskingtest.Refused:
			http.Error(w, `{"error":{"code":"8","message":"busy"}}`, http.StatusServiceUnavailable)
		case how == maskingtest.Dropped:
			panic(http.ErrAbortHandler)
		case how == maskingtest.Lost:
			next.ServeHTTP(unheard{http.Header{}}, req)
			panic(http.ErrAbortHandler)
		case forget:
			_, _ = io.WriteString(w, "{}")
		default:
			next.ServeHTTP(w, req)
		}
	})
}

// unheard is an answer that nobody gets.
type unheard struct{ h http.Header }

func (u unheard) Header() http.Header       { return u.h }
func (unheard) Write(b []byte) (int, error) { return len(b), nil }
func (unheard) WriteHeader(int)             {}

// Masked and Logins implement ontapsim.Backend.
func (r *rig) Masked(volume string, who []string) {
	r.mu.Lock()
	r.masked[volume] = who
	watch := r.watch
	r.mu.Unlock()
	if watch != nil {
		watch()
	}
}

func (r *rig) Logins() []string { r.mu.Lock(); defer r.mu.Unlock(); return slices.Clone(r.logins) }

func (r *rig) Open(t *testing.T) driver.Array {
	t.Helper()
	a, err := ontap.New(ontap.Config{Name: "fc1", URL: r.url, TLS: &tls.Config{RootCAs: r.ca.Pool()},
		Login: func(context.Context) (string, string, error) { return "admin", "pw", nil }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (r *rig) Volumes() [2]string { return [2]string{lun1, lun2} }
func (r *rig) Hosts() [3]string   { return [3]string{portA, portB, portC} }

// port is a host's HBA port that is logged in to the fabric.
type port struct {
	rig          *rig
	volume, wwpn string
}

func (p port) Write() bool { return p.rig.sim.WriteAllowed(p.volume, p.wwpn) }
func (port) Stop()         {}

func (r *rig) Start(_ *testing.T, host, volume string) (maskingtest.Holder, bool) {
	r.mu.Lock()
	if !slices.Contains(r.logins, host) {
		r.logins = append(r.logins, host)
	}
	r.mu.Unlock()
	return port{r, volume, host}, r.sim.WriteAllowed(volume, host)
}

func (r *rig) Holders(volume string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.masked[volume])
}

func (r *rig) Watch(fn func()) { r.mu.Lock(); r.watch = fn; r.mu.Unlock() }
func (r *rig) Requests() int   { r.mu.Lock(); defer r.mu.Unlock(); return r.requests }

func (r *rig) Fail(pass int, how maskingtest.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pass, r.how = pass, how
}

func (r *rig) Heal() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	fired := r.how == ""
	r.how = ""
	return fired
}

func (r *rig) Loosen(t *testing.T, volume string) {
	t.Helper()
	r.sim.Plant(ontapsim.Group{Name: "backup", Comment: "tape library", Initiators: []string{portC}, LUNs: []string{volume}})
}

// An array that acknowledges a removal and does not make it must not get a second holder.
func TestRevocationIsReadBackBeforeTheGrant(t *testing.T) {
	r := newRig(t)
	a := r.Open(t)
	if _, err := a.Apply(t.Context(), change(1, lun1, portA)); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.forget = http.MethodDelete
	r.mu.Unlock()
	if _, err := a.Apply(t.Context(), change(2, lun1, portB)); !fault.Is(err, fault.Unverified) {
		t.Fatalf("got %v", err)
	}
	if got := r.Holders(lun1); !slices.Equal(got, []string{portA}) {
		t.Fatalf("holders %v", got)
	}
}

// A group that has our name and somebody else's comment is not ours.
func TestForeignGroupOfOurNameIsKept(t *testing.T) {
	for name, g := range map[string]ontapsim.Group{
		"comment":       {Name: ontap.GroupName(lun1), Comment: "do not touch", Initiators: []string{portC}, LUNs: []string{lun1}},
		"another's LUN": {Name: ontap.GroupName(lun1), Comment: ontap.Comment(1, "run"), Initiators: []string{portC}, LUNs: []string{lun1, lun2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.sim.Plant(g)
			before := r.sim.Groups()
			if _, err := r.Open(t).Apply(t.Context(), change(5, lun1, portA)); !fault.Is(err, fault.Unsafe) {
				t.Errorf("got %v", err)
			}
			if after := r.sim.Groups(); len(after) != 1 || after[0].Comment != before[0].Comment || !slices.Equal(after[0].Initiators, before[0].Initiators) {
				t.Errorf("the group became %+v", after)
			}
		})
	}
}
