// Package hostd is the life of a Host of Rerack's own, from the moment its system runs: it says where its
// agent listens, gets a certificate for it, serves it, and turns its machines off when it is asked to end.
package hostd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"time"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

// Home is the boot plane that the machine was booted by. Its calls try again by themselves until they
// succeed, are refused for good, or ctx ends.
type Home interface {
	// PhoneHome says that the system runs, and where its agent listens.
	PhoneHome(ctx context.Context, agentURL string) error
	// Join has the agent's key signed; the answers are PEM: its certificates, and the authority to trust.
	Join(ctx context.Context, csr []byte) (certificate, ca []byte, err error)
	// Healthy says that the agent is about to serve.
	Healthy(ctx context.Context) error
}

// Config of a Host's life. Home, Listener, URL, Client and Host are required.
type Config struct {
	Home     Home
	Listener net.Listener // of the agent; closed in the end
	URL      string       // where others reach the listener, https
	Client   string       // common name in the certificate of the only caller
	Host     driver.Host
	Logger   *slog.Logger
}

// Validate names the first missing key.
func (c *Config) Validate() error {
	for _, k := range []struct {
		key string
		ok  bool
	}{{"Home", c.Home != nil}, {"Listener", c.Listener != nil}, {"URL", c.URL != ""}, {"Client", c.Client != ""}, {"Host", c.Host != nil}} {
		if !k.ok {
			return fault.Newf(fault.Invalid, "host: %s is empty", k.key)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Run serves until ctx ends, which is no error. The machines are on then: who ends the host turns them
// off, see End.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	defer c.Listener.Close()
	if err := c.Home.PhoneHome(ctx, c.URL); err != nil {
		return fault.Wrap(err, "phone home", "host")
	}
	cert, pool, err := join(ctx, c.Home)
	if err != nil {
		return fault.Wrap(err, "join", "host")
	}
	if err := c.Home.Healthy(ctx); err != nil {
		return fault.Wrap(err, "report as healthy", "host")
	}
	c.Logger.Info("serving", "url", c.URL)
	return agent.Serve(ctx, agent.ServerConfig{Listener: c.Listener, Certificate: cert, CA: pool, Client: c.Client, Host: c.Host, Logger: c.Logger})
}

// join makes a key that never leaves this process and has its certificate signed.
func join(ctx context.Context, home Home) (tls.Certificate, *x509.CertPool, error) {
	var none tls.Certificate
	key, csr, err := pki.NewRequest()
	if err != nil {
		return none, nil, fault.Wrap(err, "make a certificate request", "host")
	}
	chain, ca, err := home.Join(ctx, csr)
	if err != nil {
		return none, nil, err
	}
	cert := tls.Certificate{PrivateKey: key}
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return none, nil, fault.New(fault.Invalid, "the answer to the join holds no certificate")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil || !key.PublicKey.Equal(leaf.PublicKey) {
		return none, nil, &fault.Error{Kind: fault.Invalid, What: "the certificate in the answer to the join", Evidence: "not for our key", Err: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return none, nil, fault.New(fault.Invalid, "the answer to the join holds no authority")
	}
	return cert, pool, nil
}

// Shutdowner is a Host whose machines can be turned off all at once.
type Shutdowner interface {
	Shutdown(ctx context.Context) error
}

// ending is how long all machines have to be off.
const ending = 15 * time.Second

// End turns all machines off, on a context of its own: the host's has ended by then.
func End(h Shutdowner, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), ending)
	defer cancel()
	if err := h.Shutdown(ctx); err != nil {
		log.Error("turn the machines off", "err", err)
	}
}
