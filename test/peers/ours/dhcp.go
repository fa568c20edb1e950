package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/dhcp"
)

// serveDHCP serves the machines of a file, one "MAC address/bits" a line. Each has a boot intent, as in
// a recovery: that is the class of clients that is answered first.
func serveDHCP(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("dhcp", flag.ExitOnError)
	ifname := fs.String("if", "", "interface")
	id := fs.String("id", "", "our address")
	relay := fs.String("relay", "", "network of the relays")
	hosts := fs.String("hosts", "", "file of reservations")
	_ = fs.Parse(args) // it exits
	server, err := netip.ParseAddr(*id)
	if err != nil {
		return err
	}
	relays, err := netip.ParsePrefix(*relay)
	if err != nil {
		return err
	}
	table, err := readHosts(*hosts)
	if err != nil {
		return err
	}
	conn, err := dhcp.Listen(ctx, *ifname, "67")
	if err != nil {
		return err
	}
	s, err := dhcp.New(dhcp.Config{Decider: &pxe.Decider{Table: table, BaseURL: "http://" + *id + ":8080"},
		Listeners: []dhcp.Listener{{Name: *ifname, Conn: conn, ServerID: server, Relays: []netip.Prefix{relays}}}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	err = s.Run(ctx)
	fmt.Printf("%+v\n", s.Stats())
	return err
}

func readHosts(name string) (*pxe.Table, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	table, err := pxe.NewTable(key)
	if err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mac, addr, _ := strings.Cut(lines.Text(), " ")
		nic := pxe.NIC{Lease: 2 * time.Hour}
		if nic.MAC, err = pxe.ParseMAC(mac); err != nil {
			return nil, err
		}
		if nic.Address, err = netip.ParsePrefix(addr); err != nil {
			return nil, err
		}
		if err := table.Set(pxe.Intent{Machine: "m-" + strings.ReplaceAll(mac, ":", ""), Run: "storm", Epoch: 1, NICs: []pxe.NIC{nic},
			Boot: &pxe.Boot{LocalDisk: true}, Expires: time.Now().Add(time.Hour)}); err != nil {
			return nil, err
		}
	}
	return table, nil
}
