package bmcsim_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/icholy/digest"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
)

// amtClient posts to the simulated AMT with a header of the test's choice.
func amtClient(t *testing.T, s *bmctest.Sim) func(authorization, body string) (status int, header http.Header, answer string) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(s.CA.PEM()))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(c.CloseIdleConnections)
	return func(authorization, body string) (int, http.Header, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.BMC.Addr()+"/wsman", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, string(raw)
	}
}

// A login that was listened to opens nothing: its count has been used. Nor does one whose fields
// were changed.
func TestAMTLoginCannotBeReplayed(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMT(), true, nil)
	post := amtClient(t, s)
	status, header, _ := post("", "")
	if status != http.StatusUnauthorized {
		t.Fatalf("without a login: %d", status)
	}
	ch, err := digest.FindChallenge(header)
	if err != nil {
		t.Fatal(err)
	}
	cred := bmctest.SimCredential()
	answer := func(count int, uri string) string {
		a, err := digest.Digest(ch, digest.Options{Method: http.MethodPost, URI: uri, Count: count, Username: cred.User, Password: cred.Password.Reveal()})
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	}
	first := answer(1, "/wsman")
	for _, c := range []struct {
		name, authorization string
		want                int
	}{
		{"first use", first, http.StatusBadRequest}, // logged in, and the body is no SOAP
		{"replayed", first, http.StatusUnauthorized},
		{"next count", answer(2, "/wsman"), http.StatusBadRequest},
		{"for another URL", answer(3, "/index.htm"), http.StatusUnauthorized},
		{"another user", strings.Replace(answer(4, "/wsman"), `"admin"`, `"root"`, 1), http.StatusUnauthorized},
		{"basic", "Basic YWRtaW46eA==", http.StatusUnauthorized},
		{"skipped counts", answer(9, "/wsman"), http.StatusBadRequest},
	} {
		if got, _, _ := post(c.authorization, "x"); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	s.BMC.EndSessions()
	if got, _, _ := post(answer(10, "/wsman"), "x"); got != http.StatusUnauthorized {
		t.Errorf("after a restart: %d", got)
	}
}

// RFC 2617 section 3.5 gives an exchange in full; the simulator's arithmetic must come to the same.
func TestAMTDigestVector(t *testing.T) {
	got := bmcsim.DigestResponse("Mufasa", "testrealm@host.com", "Circle Of Life", http.MethodGet, map[string]string{
		"nonce": "dcd98b7102dd2f0e8b11d0f600bfb0c093", "nc": "00000001", "cnonce": "0a4f113b", "uri": "/dir/index.html"})
	if want := "6629fae49393a05397450978507c4ef1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzAMTRequest(f *testing.F) {
	for _, seed := range []string{
		`<Envelope><Header><Action>http://schemas.xmlsoap.org/ws/2004/09/transfer/Get</Action><ResourceURI>http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_Chassis</ResourceURI></Header></Envelope>`,
		`<Envelope><Header><Action>http://schemas.xmlsoap.org/ws/2004/09/enumeration/Pull</Action><ResourceURI>http://schemas.dmtf.org/wbem/wscim/1/*</ResourceURI></Header><Body><Pull/></Body></Envelope>`,
		`<Envelope><Header><Action>http://schemas.xmlsoap.org/ws/2004/09/transfer/Put</Action><ResourceURI>http://intel.com/wbem/wscim/1/amt-schema/1/AMT_BootSettingData</ResourceURI></Header><Body><AMT_BootSettingData><UseSOL>true</UseSOL></AMT_BootSettingData></Body></Envelope>`,
		"", "<", "<a></b>",
	} {
		f.Add(seed)
	}
	answer := bmcsim.AMTAnswerer(f)
	f.Fuzz(func(t *testing.T, raw string) {
		if status, body := answer(raw); status != http.StatusOK && status != http.StatusBadRequest || body == "" {
			t.Errorf("status %d, %q", status, body)
		}
	})
}
