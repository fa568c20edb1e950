package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/httpboot"
)

// agentClient is the name in the certificate of the only caller that the lab's agents serve, unless
// the kernel parameter rerack.client says otherwise.
const agentClient = "rerack"

// runHypervisor is the life of a Host: it reports where its agent listens, gets a certificate for it,
// and runs virtual machines until the power goes.
func (b *box) runHypervisor(ctx context.Context, p params) {
	b.enter("hypervisor")
	if err := b.lab.world.BecomeHost(b.life); err != nil {
		return
	}
	home := b.reporter(p.PhoneHome)
	if home == nil || b.machine.fault().noPhoneHome {
		<-ctx.Done()
		return
	}
	if err := b.serveAgent(ctx, p, home); err != nil && ctx.Err() == nil {
		b.log.Warn("hypervisor failed", "err", err)
		b.enter("failed")
		<-ctx.Done()
	}
}

func (b *box) serveAgent(ctx context.Context, p params, home *reporter) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fault.Wrap(err, "listen", "agent of "+b.machine.name)
	}
	defer ln.Close()
	b.enter("phone-home")
	if !home.phoneHome(ctx, "https://"+ln.Addr().String()) {
		return fault.New(fault.Unauthorized, "its report was refused")
	}
	b.enter("join")
	cert, pool, err := home.join(ctx)
	if err != nil {
		return err
	}
	h, vms, err := newHost(ctx, b)
	if err != nil {
		return err
	}
	defer vms.wait()
	b.machine.hosts(h)
	defer b.machine.hosts(nil)
	home.healthy(ctx)
	b.enter("host")
	client := p.Client
	if client == "" {
		client = agentClient
	}
	return agent.Serve(ctx, agent.ServerConfig{Listener: &gatedListener{ln, b.reaches}, Certificate: cert, CA: pool, Client: client,
		Host: h, Logger: b.log})
}

// hosts notes the hypervisor that the machine runs now, and gives it the faults that it is to have.
func (m *machine) hosts(h *hypersim.Host) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host = h; h != nil {
		h.SetFaults(func(f *hypersim.Faults) { *f = m.hosting })
	}
}

// setHostFault changes what is wrong with the machine's hypervisor, now or when it runs.
func (m *machine) setHostFault(what string, s setting) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := hostKnobs().apply(&m.hosting, what, s); err != nil || m.host == nil {
		return err
	}
	m.host.SetFaults(func(f *hypersim.Faults) { *f = m.hosting })
	return nil
}

// join makes a key that never leaves the machine and has its certificate signed.
func (r *reporter) join(ctx context.Context) (tls.Certificate, *x509.CertPool, error) {
	var none tls.Certificate
	key, csr, err := pki.NewRequest()
	if err != nil {
		return none, nil, fault.Wrap(err, "make a certificate request", r.box.machine.name)
	}
	j, err := bootclient.Join(ctx, r.client, r.url, httpboot.JoinRequest{Nonce: r.nonce, CSR: string(csr)})
	if err != nil {
		return none, nil, fault.Wrap(err, "join", r.box.machine.name)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return none, nil, fault.Wrap(err, "render the key", r.box.machine.name)
	}
	cert, err := tls.X509KeyPair([]byte(j.Certificate), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return none, nil, fault.Wrap(err, "use the certificate", r.box.machine.name)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(j.CA)) {
		return none, nil, errors.New("the join came without an authority")
	}
	return cert, pool, nil
}

// gatedListener lets connections in as far as the simulated network does.
type gatedListener struct {
	net.Listener
	pass func() bool
}

// Accept implements net.Listener.
func (g *gatedListener) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{Conn: c, pass: g.pass}, nil
}
