package consul

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// Config of a store in Consul. The environment variables of Consul's own tools are not read.
type Config struct {
	Address    string // host:port of an agent's or server's HTTP API
	Scheme     string // "http" or "https"; empty is http to a loopback address and https to any other
	Prefix     string // of all keys, a path without slashes at its ends; empty means "rerack"
	Datacenter string // empty: that of the agent

	Token     string // ACL token; needs key:write and session:write below Prefix
	TokenFile string // holds the token instead; read once by Open

	CAFile     string // PEM; empty: the system's certificate authorities
	CertFile   string // PEM, with KeyFile: the certificate to show
	KeyFile    string
	ServerName string // expected in Consul's certificate; empty: the host of Address

	Logger *slog.Logger // nil discards
}

// String leaves the token out.
func (c Config) String() string {
	return fmt.Sprintf("%s://%s/%s", c.scheme(), c.Address, c.prefix())
}

// GoString leaves the token out.
func (c Config) GoString() string { return c.String() }

// Validate returns fault.Invalid with the name of the key that is wrong.
func (c Config) Validate() error {
	invalid := func(format string, args ...any) error {
		return fault.Newf(fault.Invalid, "consul store: "+format, args...)
	}
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
		return invalid("Address is %q, it must be host:port", c.Address)
	}
	if s := c.scheme(); s != "http" && s != "https" {
		return invalid("Scheme is %q, it must be http or https", c.Scheme)
	}
	if err := store.CheckKey(c.prefix()); err != nil || len(c.prefix()) > 128 {
		return invalid("Prefix %q must be a clean path of at most 128 bytes", c.Prefix)
	}
	if c.Token != "" && c.TokenFile != "" {
		return invalid("Token and TokenFile are both set")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return invalid("CertFile and KeyFile must be set together")
	}
	if c.scheme() == "http" && (c.CAFile != "" || c.CertFile != "" || c.ServerName != "") {
		return invalid("CAFile, CertFile and ServerName need Scheme https")
	}
	return nil
}

func (c Config) prefix() string {
	if c.Prefix == "" {
		return "rerack"
	}
	return c.Prefix
}

// scheme encrypts by default what leaves this machine: the token goes with every request.
func (c Config) scheme() string {
	if c.Scheme != "" {
		return c.Scheme
	}
	host, _, _ := net.SplitHostPort(c.Address)
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return "http"
	}
	return "https"
}

func (c Config) token() (string, error) {
	if c.TokenFile == "" {
		return c.Token, nil
	}
	raw, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", &fault.Error{Kind: fault.Invalid, What: "read Consul token", Err: err, Next: "correct TokenFile"}
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", &fault.Error{Kind: fault.Invalid, What: "read Consul token", Where: c.TokenFile, Evidence: "the file is empty"}
	}
	return token, nil
}

func (c Config) tls() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read Consul's certificate authority", Err: err, Next: "correct CAFile"}
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read Consul's certificate authority", Where: c.CAFile,
				Evidence: "it has no PEM certificate"}
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read the certificate for Consul", Where: c.CertFile, Err: err}
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// ParseURL reads a Config from a URL of the form
//
//	consul://host:port/prefix?token-file=F&tls=on|off&ca-file=F&cert-file=F&key-file=F&server-name=N&dc=D
//
// in which only the host is required; the port is 8500 unless given. A token itself has no place in a URL,
// because command lines are public on a machine.
func ParseURL(raw string) (Config, error) {
	invalid := func(format string, args ...any) (Config, error) {
		e := fault.Newf(fault.Invalid, "consul URL: "+format, args...)
		e.Next = "write it as consul://host:port/prefix?token-file=FILE&tls=on"
		return Config{}, e
	}
	u, err := url.Parse(raw)
	if err != nil {
		return invalid("it is not a URL") // url.Error would repeat it, and with it what may be a password
	}
	switch {
	case u.Scheme != "consul":
		return invalid("the scheme is %q", u.Scheme)
	case u.User != nil:
		return invalid("it has a user or password; put the token into a file and name it with token-file")
	case u.Hostname() == "":
		return invalid("it has no host")
	case u.Fragment != "":
		return invalid("it has a fragment")
	}
	port := u.Port()
	if port == "" {
		port = "8500"
	}
	c := Config{Address: net.JoinHostPort(u.Hostname(), port), Prefix: strings.Trim(u.Path, "/")}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return invalid("the part after ? is malformed")
	}
	for key, values := range query {
		if len(values) != 1 || values[0] == "" {
			return invalid("%s must be given once and with a value", key)
		}
		v := values[0]
		switch key {
		case "token-file":
			c.TokenFile = v
		case "tls":
			scheme, ok := map[string]string{"on": "https", "off": "http"}[v]
			if !ok {
				return invalid("tls is %q, it must be on or off", v)
			}
			c.Scheme = scheme
		case "ca-file":
			c.CAFile = v
		case "cert-file":
			c.CertFile = v
		case "key-file":
			c.KeyFile = v
		case "server-name":
			c.ServerName = v
		case "dc":
			c.Datacenter = v
		default:
			return invalid("unknown parameter %q", key)
		}
	}
	return c, c.Validate()
}
