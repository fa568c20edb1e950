package bmcsim

import (
	"testing"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
)

// DigestResponse is the simulator's own arithmetic.
func DigestResponse(user, realm, password, method string, p map[string]string) string {
	return digestResponse(user, realm, password, method, p)
}

// AMTAnswerer answers SOAP without a socket.
func AMTAnswerer(t testing.TB) func(raw string) (status int, body string) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Backend: NewMachine(driver.Inventory{}), Profile: AMT(), Users: []bmc.Credential{{User: "admin"}}}, ca)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(raw string) (int, string) {
		out := b.soap(raw)
		d, _ := out.body.(document)
		return out.status, d.text
	}
}
