package consul_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store/consul"
)

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]consul.Config{
		"consul://127.0.0.1":                  {Address: "127.0.0.1:8500"},
		"consul://127.0.0.1:8501/":            {Address: "127.0.0.1:8501"},
		"consul://c.example:8501/dc/rerack":   {Address: "c.example:8501", Prefix: "dc/rerack"},
		"consul://[::1]:8500/x":               {Address: "[::1]:8500", Prefix: "x"},
		"consul://c:1/x?tls=off":              {Address: "c:1", Prefix: "x", Scheme: "http"},
		"consul://c:1/x?token-file=/etc/tok":  {Address: "c:1", Prefix: "x", TokenFile: "/etc/tok"},
		"consul://c:1?tls=on&ca-file=/ca.pem": {Address: "c:1", Scheme: "https", CAFile: "/ca.pem"},
		"consul://c:1?cert-file=c&key-file=k&server-name=s&dc=d": {Address: "c:1", CertFile: "c", KeyFile: "k",
			ServerName: "s", Datacenter: "d"},
	} {
		got, err := consul.ParseURL(raw)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseURL(%q) = %+v, %v, want %+v", raw, got, err, want)
		}
	}
	for raw, says := range map[string]string{
		"":                                         "scheme",
		"http://c:1/x":                             "scheme",
		"consul:///x":                              "no host",
		"consul://user:hunter2@c:1/x":              "token-file",
		"consul://user:hunter2@c:port/x":           "not a URL",
		"consul://c:1/x#f":                         "fragment",
		"consul://c:1/x?token=hunter2":             `"token"`,
		"consul://c:1/x?tls=maybe":                 "on or off",
		"consul://c:1/x?tls=on&tls=off":            "once",
		"consul://c:1/x?token-file=":               "value",
		"consul://c:1/x?cert-file=c":               "KeyFile",
		"consul://c:1/x//y":                        "Prefix",
		"consul://c:1/../y":                        "Prefix",
		"consul://c:1/x?tls=off&ca-file=/a":        "https",
		"consul://c:1/x?%zz":                       "malformed",
		"consul://127.0.0.1:1/x?ca-file=/ca":       "https",
		"consul://c:1/" + strings.Repeat("p", 200): "Prefix",
	} {
		_, err := consul.ParseURL(raw)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseURL(%q) = %v, want fault.Invalid that says %q", raw, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("ParseURL(%q) repeats the secret: %v", raw, err)
		}
	}
}

func TestTokenIsNotPrinted(t *testing.T) {
	c := consul.Config{Address: "c:1", Token: "hunter2"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, c); strings.Contains(s, "hunter2") {
			t.Errorf("%s prints %s", format, s)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, raw := range []string{"consul://127.0.0.1:8500/rerack?token-file=/t&tls=on", "consul://[::1]/a/b?dc=x", "consul://u:p@h", "%"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := consul.ParseURL(raw)
		if err == nil && (c.Validate() != nil || c.Token != "") {
			t.Errorf("ParseURL(%q) = %#v, which is not valid or has a token", raw, c)
		}
	})
}
