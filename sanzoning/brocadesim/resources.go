package brocadesim

import (
	"encoding/xml"
	"maps"
	"slices"
)

// The resources, with the leaves of Broadcom's brocade-zone.yang (revision 2021-10-08) that are served.

// effectiveXML is brocade-zone/effective-configuration.
//
//	cfg-name           the configuration in force; absent when there is none. In PATCH: the one to enable
//	checksum           MD5 of the database, 32 hex digits. In PATCH: of the database the edits were made for
//	cfg-action         PATCH only: 1 save, 2 disable, 3 clear all, 4 clear pending changes
//	default-zone-access 0 no access, 1 all access, when no configuration is in force
//	db-transaction     bytes of the open transaction, 0 when there is none
//	transaction-token  of the open transaction at this switch, 0 when there is none
//	enabled-zone       list, see zoneXML; aliases are resolved
type effectiveXML struct {
	XMLName           xml.Name  `xml:"effective-configuration"`
	CfgName           string    `xml:"cfg-name,omitempty"`
	Checksum          string    `xml:"checksum,omitempty"`
	CfgAction         int       `xml:"cfg-action,omitempty"`
	DefaultZoneAccess int       `xml:"default-zone-access"`
	DBMax             int       `xml:"db-max"`
	DBTransaction     int       `xml:"db-transaction"`
	TransactionToken  uint32    `xml:"transaction-token"`
	EnabledZones      []zoneXML `xml:"enabled-zone"`
}

// definedXML is brocade-zone/defined-configuration. POST adds, and adds members to what is there; PATCH
// replaces the members; DELETE removes members, or the whole when none are given.
//
//	cfg    list: cfg-name, member-zone/zone-name (leaf-list)
//	zone   list, see zoneXML
//	alias  list: alias-name, member-entry/alias-entry-name (leaf-list)
type definedXML struct {
	XMLName xml.Name   `xml:"defined-configuration"`
	Cfgs    []cfgXML   `xml:"cfg"`
	Zones   []zoneXML  `xml:"zone"`
	Aliases []aliasXML `xml:"alias"`
}

type cfgXML struct {
	Name    string   `xml:"cfg-name"`
	Members []string `xml:"member-zone>zone-name"`
}

type aliasXML struct {
	Name    string   `xml:"alias-name"`
	Members []string `xml:"member-entry>alias-entry-name"`
}

// zoneXML is an entry of the lists zone and enabled-zone.
//
//	zone-name                        at most 64 of [0-9a-zA-Z_^$-]
//	zone-type                        0 zone, 1 user-created peer zone, 2 target-created (deprecated)
//	zone-type-string                 zone, user-created-peer-zone, target-created-peer-zone
//	member-entry/entry-name          leaf-list, at least one
//	member-entry/principal-entry-name leaf-list, peer zones only, at least one
type zoneXML struct {
	Name       string   `xml:"zone-name"`
	Number     *int     `xml:"zone-type"`
	Type       string   `xml:"zone-type-string,omitempty"`
	Entries    []string `xml:"member-entry>entry-name"`
	Principals []string `xml:"member-entry>principal-entry-name"`
}

const (
	plainType = "zone"
	peerType  = "user-created-peer-zone"
)

// lockXML is brocade-zone/fabric-lock. Without a lock it has its first leaf alone.
//
//	lock-principal-domain-id          domain of the switch that holds the lock, 0 when it is free
//	lock-principal-transaction-token  of the transaction
//	timeout, remaining-time           in seconds
//	client-role, client-user-name, client-ip-address, client-interface, client-application-name
type lockXML struct {
	XMLName     xml.Name `xml:"fabric-lock"`
	Domain      int      `xml:"lock-principal-domain-id"`
	Token       uint32   `xml:"lock-principal-transaction-token,omitempty"`
	Timeout     int      `xml:"timeout,omitempty"`
	Remaining   int      `xml:"remaining-time,omitempty"`
	Role        string   `xml:"client-role,omitempty"`
	User        string   `xml:"client-user-name,omitempty"`
	Address     string   `xml:"client-ip-address,omitempty"`
	Interface   string   `xml:"client-interface,omitempty"`
	Application string   `xml:"client-application-name,omitempty"`
}

// deviceXML is an entry of brocade-name-server/fibrechannel-name-server.
//
//	port-id    FC address, 0x and six hex digits: the key
//	port-name  WWPN
//	node-name  WWNN
type deviceXML struct {
	XMLName  xml.Name `xml:"fibrechannel-name-server"`
	PortID   string   `xml:"port-id"`
	PortName string   `xml:"port-name"`
	NodeName string   `xml:"node-name"`
}

func toXML(z Zone) zoneXML {
	x := zoneXML{Name: z.Name, Type: plainType, Number: new(int), Entries: z.Members}
	if z.Peer {
		x.Type, x.Principals = peerType, z.Principals
		*x.Number = 1
	}
	return x
}

func fromXML(x zoneXML) Zone {
	return Zone{Name: x.Name, Peer: x.Type == peerType || x.Type == "" && x.Number != nil && *x.Number == 1,
		Members: x.Entries, Principals: x.Principals}
}

func (d Defined) xml() definedXML {
	var x definedXML
	for _, n := range slices.Sorted(maps.Keys(d.Cfgs)) {
		x.Cfgs = append(x.Cfgs, cfgXML{n, d.Cfgs[n]})
	}
	for _, n := range slices.Sorted(maps.Keys(d.Zones)) {
		x.Zones = append(x.Zones, toXML(d.Zones[n]))
	}
	for _, n := range slices.Sorted(maps.Keys(d.Aliases)) {
		x.Aliases = append(x.Aliases, aliasXML{n, d.Aliases[n]})
	}
	return x
}
