package amt_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// H14: answers without an end.
func TestEndlessAnswers(t *testing.T) {
	ctx := ctxFor(t)
	s, d := open(t, bmcsim.AMT(), true)
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.Flood = 16 << 20 })
	r, err := d.Power(ctx)
	wantKind(t, err, fault.Internal, "longer than")
	if r.State != driver.PowerUnknown {
		t.Errorf("state %s out of a cut answer", r.State)
	}
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.Flood, f.LoopLinks = 0, true })
	before := s.BMC.Count("post")
	_, err = d.Power(ctx)
	wantKind(t, err, fault.Internal, "too many requests")
	if n := s.BMC.Count("post") - before; n > 64 {
		t.Errorf("%d requests", n)
	}
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.LoopLinks = false })
	if _, err := d.Power(ctx); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// hostile is an AMT that takes any login and answers everything with answer.
func hostile(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) bmc.Endpoint {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Digest realm="Digest:00", nonce="n",stale="false",qop="auth"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	return bmc.Endpoint{Address: srv.Listener.Addr().String(), Fingerprint: bmctest.Fingerprint(srv.Certificate().Raw)}
}

func envelope(body string) string {
	return `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Header/><s:Body>` + body + `</s:Body></s:Envelope>`
}

func TestHostileAnswers(t *testing.T) {
	deep := strings.Repeat("<a>", 5000) + strings.Repeat("</a>", 5000)
	for name, c := range map[string]struct {
		status int
		body   string
		kind   fault.Kind
		words  string
	}{
		"empty":            {200, "", fault.Internal, "no element"},
		"not XML":          {200, "%PDF", fault.Internal, "SOAP"},
		"html 400":         {400, "<html><p>bad", fault.Invalid, "HTTP 400"},
		"deep":             {200, envelope(deep), fault.Internal, "nested deeper"},
		"wide":             {200, envelope("<x>" + strings.Repeat("<a/>", 70000) + "</x>"), fault.Internal, "tokens"},
		"entities":         {200, `<!DOCTYPE a [<!ENTITY b "` + strings.Repeat("c", 100) + `">]>` + envelope("<a>&b;</a>"), fault.Internal, "document type"},
		"another document": {200, "<hello/>", fault.Internal, "root is hello"},
		"another request":  {200, `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Header><RelatesTo>uuid:1</RelatesTo></s:Header><s:Body><PullResponse/></s:Body></s:Envelope>`, fault.Internal, "another request"},
		"wrong element":    {200, envelope("<GetResponse/>"), fault.Internal, "holds GetResponse"},
		"no instance":      {200, envelope("<EnumerateResponse/>"), fault.Unsupported, "no power state"},
		"two bodies":       {200, envelope("<a/><b/>"), fault.Internal, "exactly one"},
		"access denied":    {400, envelope(`<s:Fault xmlns:w="x"><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>w:AccessDenied</s:Value></s:Subcode></s:Code></s:Fault>`), fault.Unauthorized, "consent"},
		"quota":            {500, envelope(`<s:Fault><s:Code><s:Subcode><s:Value>w:QuotaLimit</s:Value></s:Subcode></s:Code></s:Fault>`), fault.Busy, "QuotaLimit"},
		"403":              {403, "", fault.Unauthorized, "realm"},
		"503":              {503, "", fault.Busy, "503"},
	} {
		ep := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = fmt.Fprint(w, c.body)
		})
		d, err := amt.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
		if d != nil || !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v is %s, want %s with %q", name, err, fault.KindOf(err), c.kind, c.words)
		}
	}
}

// Whatever a box says of its power, only the two words for off are off.
func TestOnlyOffIsOff(t *testing.T) {
	for _, state := range []string{"0", "1", "3", "4", "5", "7", "9", "10", "11", "12", "13", "16", "65535", "-8", "8.0", "", "off", "65544"} {
		ep := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
			const class = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_AssociatedPowerManagementService"
			_, _ = fmt.Fprint(w, envelope(`<EnumerateResponse><Items><r:CIM_AssociatedPowerManagementService xmlns:r="`+class+`"><r:PowerState>`+state+
				`</r:PowerState></r:CIM_AssociatedPowerManagementService></Items><EndOfSequence/></EnumerateResponse>`))
		})
		d, err := amt.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
		if err != nil {
			continue // refused as no power state
		}
		if r, err := d.Power(ctxFor(t)); err == nil && r.State != driver.PowerChanging {
			t.Errorf("power state %q reads %s", state, r.State)
		}
		if err := d.Close(ctxFor(t)); err != nil {
			t.Error(err)
		}
	}
}

// A login goes to AMT's own URL, and to nobody it points at.
func TestRedirectIsNotFollowed(t *testing.T) {
	var hits atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer other.Close()
	ep := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	_, err := amt.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
	wantKind(t, err, fault.Unsafe)
	if hits.Load() != 0 {
		t.Error("the other host was asked")
	}
}

// Basic would give the password away.
func TestBasicIsNotAnswered(t *testing.T) {
	var authorized atomic.Int64
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			authorized.Add(1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="Digest:00"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	ep := bmc.Endpoint{Address: srv.Listener.Addr().String(), Fingerprint: bmctest.Fingerprint(srv.Certificate().Raw)}
	_, err := amt.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
	wantKind(t, err, fault.Unsupported, "without a digest challenge")
	if authorized.Load() != 0 {
		t.Error("a login was sent")
	}
}
